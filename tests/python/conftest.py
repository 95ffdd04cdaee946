"""What these tests share: where programs, models and the page on the format are."""

import os
import subprocess
from pathlib import Path

import gguf
import numpy as np
import pytest
from format_page import definitions

ROOT = Path(__file__).resolve().parent.parent.parent
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable, ROOT / default))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    path = folder("STATECELLS_MODELS_DIR", "models") / SMOLLM2
    if not path.is_file():
        # A folder that somebody names has to hold the model.
        assert "STATECELLS_MODELS_DIR" not in os.environ, f"{path} is missing"
        pytest.skip(f"no {path}; run ./scripts/fetch-model.sh")
    return path


@pytest.fixture(scope="session")
def build():
    """Runs statecells-build; returns the output's path."""
    program = folder("STATECELLS_BIN_DIR", "bin") / "statecells-build"
    assert program.is_file(), f"{program} is missing: run ./scripts/test.sh"

    def run(source: Path, output: Path, *flags: str) -> Path:
        command = [program, "-i", source, "-o", output, *flags]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return output

    return run


@pytest.fixture(scope="session")
def page() -> dict:
    return definitions()


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """A GGUF with the FFN of two layers and odd sizes, written by the package gguf alone."""
    path = tmp_path_factory.mktemp("model") / "random.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(52)
    writer.add_feed_forward_length(108)
    rng = np.random.default_rng(3)
    for layer in range(2):
        for part, shape in (("gate", (108, 52)), ("up", (108, 52)), ("down", (52, 108))):
            weights = rng.standard_normal(shape) @ np.diag(1.0 / np.arange(1, shape[1] + 1) ** 0.5)
            writer.add_tensor(f"blk.{layer}.ffn_{part}.weight", weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
