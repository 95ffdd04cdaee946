"""The comparison, with stand-ins for the llama programs, and the GGUF header reader."""

import json
from pathlib import Path

import compare
import gguf
import numpy as np
import pytest
from gguf_header import GgufError, Tensor, read_tensors

# Answers as the real programs do; the dense model is fast and good, the coded one is not. The bench
# numbers its rounds in a file.
PROGRAMS = {
    "llama-completion": 'case "$*" in *--statecells*) printf "bla\\033[2Jbla";; *) echo " Paris. ";; esac',
    "llama-perplexity": """case "$*" in *--statecells*) p=4000.5;; *) p=20.25;; esac
        echo "Final estimate: PPL = $p +/- 0.5" >&2""",
    "llama-bench": """echo x >>"$0.rounds"; n=$(wc -l <"$0.rounds")
        case "$*" in *--statecells*) f=1;; *) f=100;; esac
        echo "[{\\"n_gen\\": 0, \\"avg_ts\\": $((n * f))}, {\\"n_gen\\": 8, \\"avg_ts\\": $((n * f * 2))}]" """,
}


def write_gguf(path, tensors):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("some.strings", ["a", "bc"])
    writer.add_array("some.numbers", [1, 2, 3])
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def arguments(tmp_path):
    folder = tmp_path / "the bin"
    folder.mkdir()
    for name, body in PROGRAMS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    base = write_gguf(
        tmp_path / "base.gguf", {"blk.0.ffn_up.weight": (32, 64), "blk.0.ffn_up.bias": (64,), "output.weight": (8, 8)}
    )
    coded = write_gguf(tmp_path / "coded.gguf", {"blk.0.ffn_up.dict": (8, 64), "blk.0.ffn_up.codes": (8, 8)})
    return ["--base", str(base), "--coded", str(coded), "--text", "t", "--bin-dir", str(folder)]


def test_the_table_holds_what_the_programs_said(arguments, tmp_path, capsys):
    record = tmp_path / "out/record.json"
    assert compare.main([*arguments, "--rounds", "3", "--json", str(record)]) == 0
    out = capsys.readouterr().out
    rows = {line[:26].strip(): line[26:].split() for line in out.splitlines()}
    assert rows["FFN weights, bytes"] == ["8,192", "2,304", "0.281"]
    models = json.loads(record.read_text())["models"]
    assert (models["base"]["perplexity"], models["coded"]["perplexity"]) == (20.25, 4000.5)
    # Rounds 1 3 5 are the base's, 2 4 6 the coded model's: in turn, and the median of each.
    assert models["base"]["prompt_tokens_per_s_rounds"] == [100, 300, 500]
    assert models["coded"]["generation_tokens_per_s_rounds"] == [4, 8, 12]
    assert models["base"]["prompt_tokens_per_s"] == 300
    assert models["base"]["peak_memory_bytes"] > 0
    assert "4,000.50" in out
    assert "base: Paris." in out
    assert "\033" not in out
    assert not any("--statecells" in c for c in models["base"]["commands"])
    assert all("--statecells" in c for c in models["coded"]["commands"])


def test_a_failing_program_is_named(arguments, tmp_path, capsys):
    program = tmp_path / "the bin/llama-perplexity"
    program.write_text("#!/bin/sh\necho broken >&2; exit 7\n")
    assert compare.main(arguments) == 1
    err = capsys.readouterr().err
    assert str(program) in err
    assert "broken" in err
    assert "ended with code 7" in err


def test_a_missing_estimate_is_an_error(arguments, tmp_path, capsys):
    (tmp_path / "the bin/llama-perplexity").write_text("#!/bin/sh\necho nothing\n")
    assert compare.main(arguments) == 1
    assert "gave no estimate" in capsys.readouterr().err


def test_missing_programs_say_how_to_build(arguments, tmp_path, capsys):
    (tmp_path / "the bin/llama-completion").unlink()
    assert compare.main(arguments) == 1
    assert "run ./scripts/" in capsys.readouterr().err


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
