"""The measurement of sensitivities, with stand-ins for the programs."""

import json

import measure_sensitivity
import pytest
from conftest import write_gguf

# The error of layer L is L + 1 in each of two tensors; the divergence is 4 in layer 0 and 4 in layer 1.
BUILDER = """#!/bin/sh
[ -z "$FAIL" ] || { echo "statecells-build: error: $FAIL" >&2; exit 1; }
while [ $# -gt 0 ]; do
  case $1 in --layers) layer=$2;; --report-json) report=$2;; -o) echo "$layer" >"$2";; esac
  shift
done
e=$((layer + 1))
t='{"functional": {"error_held_out_tokens": '$e'}}'
echo "{\\"tensors\\": [$t, $t]}" >"$report"
"""
PERPLEXITY = """#!/bin/sh
case "$*" in *--statecells*) echo "Mean    KLD:   4.0 +- 0.1";; *) echo "Final estimate: PPL = 20";; esac
"""


@pytest.fixture
def arguments(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"statecells-build": BUILDER, "llama-perplexity": PERPLEXITY}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    model = write_gguf(tmp_path / "m.gguf", {f"blk.{i}.ffn_{t}.weight": (8, 8) for i in (0, 1) for t in ("up", "down")})
    line = ["--model", model, "--calib", "c", "--text", "t", "-o", tmp_path / "s.json", "--bin-dir", folder]
    return [str(a) for a in line]


def test_divergence_over_error_scaled_to_a_mean_of_one(arguments, tmp_path):
    assert measure_sensitivity.main(arguments) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    # 4 / 2 and 4 / 4, over their mean
    expected = {"0": 1.3333, "1": 0.6667}
    assert found == {f"blk.{i}.ffn_{t}": v for i, v in expected.items() for t in ("gate", "up", "down")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "m.gguf", "s.json"]


def test_a_failing_program_is_one_line_and_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "other model")
    assert measure_sensitivity.main(arguments) == 1
    assert "other model" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "m.gguf"]


def test_a_coded_model_is_refused(arguments, tmp_path, capsys):
    write_gguf(tmp_path / "m.gguf", {"blk.0.ffn_up.codes": (8, 8)})
    assert measure_sensitivity.main(arguments) == 1
    assert "no FFN weights" in capsys.readouterr().err
