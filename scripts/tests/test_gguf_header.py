"""The GGUF header reader."""

from pathlib import Path

import gguf
import pytest
from conftest import write_gguf
from gguf_header import GgufError, Tensor, read_tensors


def test_header_reader_agrees_with_the_gguf_package(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"a": (3, 5), "b": (7,), "c": (16, 2)})
    reference = gguf.GGUFReader(path).tensors
    found = read_tensors(path)
    assert [t.name for t in found] == [t.name for t in reference]
    for ours, theirs in zip(found, reference):
        assert 0 <= ours.n_bytes - int(theirs.n_bytes) < 32


def test_header_reader_refuses_every_truncated_header(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", {"a": (8, 8)})
    data = path.read_bytes()
    header = data.index(b"a" + (2).to_bytes(4, "little")) + 1 + 4 + 16 + 4 + 8
    assert read_tensors(path) == [Tensor("a", 256)]
    cut = Path(tmp_path / "cut.gguf")
    for length in range(header):
        cut.write_bytes(data[:length])
        with pytest.raises(GgufError, match="cut.gguf"):
            read_tensors(cut)
