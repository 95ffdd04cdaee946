"""What the tests of the scripts share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Makes programs of shell texts, which may append to the file that CALLS names; their folder. llama-perplexity writes the
    base's logits, and says `found` of a coded model."""

    def make(builder, found):
        said = "; ".join(f'echo "{line}"' for line in found)
        perplexity = f"""#!/bin/sh
case "$*" in
*--statecells*) {said};;
*) while [ $# -gt 0 ]; do [ "$1" != --kl-divergence-base ] || echo logits >"$2"; shift; done ;;
esac
"""
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, text in {"statecells-build": builder, "llama-perplexity": perplexity}.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
        return folder

    return make


@pytest.fixture
def run_script(tmp_path):
    """Runs a script with a cache of its own; the result has returncode, stdout and stderr."""

    def run(name, *arguments, **environment):
        # No index answers here: a test that needs the network has to fail.
        env = {**os.environ, "STATECELLS_CACHE_DIR": str(tmp_path / "the cache"), "PIP_INDEX_URL": "http://127.0.0.1:9/"}
        env.pop("LLAMA_CPP_DIR", None)
        env |= {"PIP_RETRIES": "0", **{k: str(v) for k, v in environment.items()}}
        return subprocess.run(
            [SCRIPTS / name, *map(str, arguments)],
            env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    return run
