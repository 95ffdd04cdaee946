"""What the tests of the scripts share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))


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
