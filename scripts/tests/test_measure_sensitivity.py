"""The measurement of sensitivities, with stand-ins for the programs."""

import json

import measure_sensitivity
import pytest

# In layer L the error of ffn_up is L + 1 and that of ffn_down twice as much. With one layer coded the model diverges
# by 6, with all of ffn_up by 4 and with all of ffn_down by 24.
BUILDER = """#!/usr/bin/env python3
import json, os, sys
if os.environ.get("FAIL"):
    sys.exit("statecells-build: error: " + os.environ["FAIL"])
flags = dict(zip(sys.argv[1:], sys.argv[2:]))
layers = [int(flags["--layers"])] if "--layers" in flags else [0, 1]
targets = [flags["--targets"]] if "--targets" in flags else ["up", "down"]
size = {"up": 1, "down": 2}
tensors = [
    {"name": f"blk.{layer}.ffn_{t}.weight", "functional": {"error_held_out_tokens": (layer + 1) * size[t]}}
    for layer in layers for t in targets
]
open(flags["--report-json"], "w").write(json.dumps({"tensors": tensors}))
open(flags["-o"], "w").write({"up": "4", "down": "24"}.get(flags.get("--targets"), "6"))
"""
# The last layer is for multi-token prediction: no text runs through it.
INSPECT = """#!/usr/bin/env python3
import json, os, sys
assert sys.argv[2:] == ["--json"] and os.path.exists(sys.argv[1])
scheme = os.environ.get("SCHEME")
tensors = [
    {"name": f"blk.{layer}.ffn_{t}", "layer": layer, "target": t, "scheme": scheme}
    for layer in (0, 1, 2) for t in ("up", "down")
]
print(json.dumps({"n_layers": 3, "n_mtp_layers": 1, "tensors": tensors}))
"""
PERPLEXITY = """#!/bin/sh
case "$*" in *--statecells*) echo "Mean    KLD:   $(cat "$2").0 +- 0.1";; *) echo "Final estimate: PPL = 20";; esac
"""


@pytest.fixture
def arguments(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {"statecells-build": BUILDER, "statecells-inspect": INSPECT, "llama-perplexity": PERPLEXITY}
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    model = tmp_path / "m.gguf"
    model.touch()
    line = ["--model", model, "--calib", "c", "--text", "t", "-o", tmp_path / "s.json", "--bin-dir", folder]
    return [str(a) for a in line]


def test_divergence_over_error_scaled_to_a_mean_of_one(arguments, tmp_path):
    assert measure_sensitivity.main(arguments) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    # Layers: 6 / 3 and 6 / 6. Expected of up 1 * 2 + 2 * 1 = 4 and found 4; of down twice that, found 24: three times.
    raw = {"blk.0.ffn_up": 2, "blk.1.ffn_up": 1, "blk.0.ffn_down": 6, "blk.1.ffn_down": 3}
    assert found == {name: round(value / 3, 4) for name, value in raw.items()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "m.gguf", "s.json"]


def test_a_failing_program_is_one_line_and_leaves_nothing(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAIL", "other model")
    assert measure_sensitivity.main(arguments) == 1
    assert "other model" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bin", "m.gguf"]


def test_a_coded_model_is_refused(arguments, monkeypatch, capsys):
    monkeypatch.setenv("SCHEME", "sections")
    assert measure_sensitivity.main(arguments) == 1
    assert "no FFN weights" in capsys.readouterr().err
