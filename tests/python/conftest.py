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


def builder(name: str):
    program = folder("STATECELLS_BIN_DIR", "bin") / name
    assert program.is_file(), f"{program} is missing: run ./scripts/test.sh"

    def run(source: Path, output: Path, *flags: str) -> Path:
        command = [program, "-i", source, "-o", output, *flags]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return output

    return run


@pytest.fixture(scope="session")
def build():
    """Runs statecells-build; returns the output's path."""
    return builder("statecells-build")


@pytest.fixture(scope="session")
def seeddelta_build():
    """Runs seeddelta-build; returns the output's path."""
    return builder("seeddelta-build")


@pytest.fixture(scope="session")
def page() -> dict:
    return definitions()


def write_ffn(path: Path, n_layers: int, n_embd: int, n_ff: int) -> Path:
    """A GGUF with FFN matrices alone, written by the package gguf."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(n_layers)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    rng = np.random.default_rng(3)
    for layer in range(n_layers):
        for part, shape in (("gate", (n_ff, n_embd)), ("up", (n_ff, n_embd)), ("down", (n_embd, n_ff))):
            weights = rng.standard_normal(shape) @ np.diag(1.0 / np.arange(1, shape[1] + 1) ** 0.5)
            writer.add_tensor(f"blk.{layer}.ffn_{part}.weight", weights.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def random_model(tmp_path_factory) -> Path:
    """Two layers of odd sizes."""
    return write_ffn(tmp_path_factory.mktemp("model") / "random.gguf", 2, 52, 108)


@pytest.fixture(scope="session", params=[20, 1], ids="{} rows".format)
def thin_model(request, tmp_path_factory) -> tuple[Path, int, int]:
    """One layer whose gate and up have so few rows that files lose dimensions of 1; with n_embd and n_ff."""
    n_embd, n_ff = 52, request.param
    return write_ffn(tmp_path_factory.mktemp("thin") / "thin.gguf", 1, n_embd, n_ff), n_embd, n_ff
