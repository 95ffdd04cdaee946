#!/usr/bin/env python3
"""What a coded file's outputs lose on texts that it was not fitted to.

usage: error_elsewhere.py MODEL DECODED CALIBRATION...

DECODED is the dense file that a coded one stands for (statecells-build -i CODED --decode DECODED --decode-type f16), MODEL what the
coded one was made of, and every CALIBRATION is of MODEL, by statecells-calib, of a text of its own. Prints for every matrix that
differs the mean square of the outputs' error over that of the outputs, on the inputs of every calibration; then the geometric
means. Needs the packages gguf and numpy (scripts/setup-tools.sh --test).
"""

import sys
from pathlib import Path

import numpy as np


def from_triangle(packed: np.ndarray) -> np.ndarray:
    """The symmetric matrix of which `packed` is the lower triangle, row by row."""
    n = int((2 * len(packed)) ** 0.5)
    whole = np.zeros((n, n), dtype=np.float32)
    whole[np.tril_indices(n)] = packed
    return whole + np.tril(whole, -1).T


def energy(rows: np.ndarray, moment: np.ndarray) -> float:
    """Mean square of the outputs that `rows` give for inputs with that second moment."""
    return float(np.einsum("ij,ij", rows @ moment, rows))


def errors(model: dict, decoded: dict, moments: list[dict]) -> dict[str, list[float]]:
    """Tensors are [n_out, n_in] by name; the errors of a matrix stand in the order of `moments`, which are by input."""
    found = {}
    for name in sorted(decoded):
        weights, coded = model[name], decoded[name]
        layer, kind = name.split(".")[1:3]
        part = "ffn_down" if kind == "ffn_down" else "ffn_in"
        inputs = [of_text.get(f"blk.{layer}.{part}.h") for of_text in moments]
        if any(packed is None for packed in inputs) or np.array_equal(weights, coded):
            continue
        whole = [from_triangle(packed) for packed in inputs]
        found[name] = [energy(weights - coded, h) / energy(weights, h) for h in whole]
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    from gguf import GGUFReader, dequantize

    def tensors(path: str, ending: str, read) -> dict:
        return {t.name: read(t) for t in GGUFReader(path).tensors if t.name.endswith(ending) and ".ffn_" in t.name}

    def matrices(path: str) -> dict:
        by_name = tensors(path, ".weight", lambda t: dequantize(t.data, t.tensor_type))
        return {name: weights for name, weights in by_name.items() if weights.ndim == 2}

    moments = [tensors(path, ".h", lambda t: t.data) for path in arguments[2:]]
    found = errors(matrices(arguments[0]), matrices(arguments[1]), moments)
    if not found:
        print("error: no matrix differs of whose inputs all calibrations have second moments", file=sys.stderr)
        return 1
    found["all, geometric mean"] = list(np.exp(np.log(list(found.values())).mean(axis=0)))
    print("| matrix | " + " | ".join(Path(path).stem for path in arguments[2:]) + " |")
    print("|" + "---|" * (len(arguments) - 1))
    for name, of_texts in found.items():
        print(f"| {name} | " + " | ".join(f"{error:.5f}" for error in of_texts) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
