#!/usr/bin/env python3
"""The Python on docs/format.md: a stranger's way to read a file, run as it stands on the page.

As a program it compares what the page makes of a coded file with the same matrices in a dense file:

    format_page.py CODED.gguf DENSE.gguf
"""

import re
import sys
from pathlib import Path

import gguf
import numpy as np

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/format.md"


def definitions() -> dict:
    """What the page's blocks of Python define."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, f"{PAGE} shows no Python"
    defined: dict = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), defined)
    return defined


def stems(reader: gguf.GGUFReader) -> list[str]:
    """Coded matrices, as the metadata name them."""
    keys = [k for k in reader.fields if k.startswith("statecells.blk.") and k.endswith(".scheme")]
    return [k.removeprefix("statecells.").removesuffix(".scheme") for k in keys]


def decode(page: dict, path: str | Path, stem: str, d_in: int, d_out: int) -> np.ndarray:
    """What the page makes of the matrix `stem`, (d_out, d_in), or of those of experts, (n, d_out, d_in)."""
    scheme = gguf.GGUFReader(path).get_field(f"statecells.{stem}.scheme").contents()
    if stem.endswith("_exps"):
        return page["decode_experts"](path, stem)
    if scheme == "sections":
        return page["decode_sections"](path, stem, d_in, d_out)
    if scheme == "seeddelta":
        return page["decode_seeddelta"](path, stem, d_in, d_out)
    return page["decode_global"](path, stem)


def main(coded: str, dense: str) -> int:
    page = definitions()
    weights = {t.name: t.data for t in gguf.GGUFReader(dense).tensors}
    found = stems(gguf.GGUFReader(coded))
    for stem in found:
        expected = weights[stem + ".weight"]
        d_out, d_in = expected.shape[-2:]
        decoded = decode(page, coded, stem, d_in, d_out)
        assert decoded.shape == expected.shape, (stem, decoded.shape, expected.shape)
        assert np.abs(expected).max() > 0, stem
        # numpy may add the atoms of a row in another order: some roundings to F32
        furthest = np.abs(decoded - expected).max() / np.abs(expected).max()
        print(f"{stem}: {furthest:.2e}")
        if not furthest <= 2**-21:
            return 1
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
