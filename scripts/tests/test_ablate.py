"""The ablation, with stand-ins for the programs."""

import json

import ablate
import pytest

# The error is 0.04 without refit and 0.01 otherwise, in two matrices of 8 x 8 with 24 bytes.
BUILDER = """#!/bin/sh
echo "$*" >>"$CALLS"
error=0.01
while [ $# -gt 0 ]; do
  case $1 in --report-json) report=$2;; --rounds) [ $2 != 0 ] || error=0.04;; esac
  shift
done
t='{"functional": {"error_held_out_tokens": '$error'}, "bytes": 24, "d_in": 8, "d_out": 8}'
echo "{\\"tensors\\": [$t, $t], \\"seconds\\": 2.4}" >"$report"
"""
FOUND = ["Mean PPL(Q)  :  21.5 +- 0.1", "Mean    KLD:   0.04 +- 0.001"]


@pytest.fixture
def arguments(tmp_path, stand_ins):
    folder = stand_ins(BUILDER, FOUND)
    line = ["--model", "m", "--calib", "c", "--text", "t", "--folder", tmp_path / "work", "--bin-dir", folder]
    return [str(a) for a in [*line, "--fewer", "short.gguf", "--sequential", 4, "short.gguf", "--sensitivity", "s.json"]]


def test_rows_are_compared_with_the_defaults(arguments, capsys):
    assert ablate.main(arguments) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    by_name = {row[0].removeprefix("| "): row[1:] for row in rows}
    assert by_name["defaults"] == ["3.00", "0.01000", "1.000", "21.50", "0.0400", "2 |"]
    assert by_name["no refit under the moment"][1:3] == ["0.04000", "4.000"]
    assert {"calibrated by short", "calibrated by short, --sequential 4"} <= by_name.keys()


def test_every_setting_is_asked_for_once(arguments, tmp_path):
    assert ablate.main(arguments) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) == len(ablate.SETTINGS) + 4
    assert sum("--bpw 3.09" in c and "--S" not in c for c in calls) == 2
    assert ablate.main(arguments) == 0
    assert (tmp_path / "calls").read_text().splitlines() == calls


def test_other_settings_are_measured_anew(arguments, tmp_path):
    assert ablate.main(arguments) == 0
    before = len((tmp_path / "calls").read_text().splitlines())
    assert ablate.main([*arguments, "--sections", "5"]) == 0
    assert len((tmp_path / "calls").read_text().splitlines()) == 2 * before
    assert json.loads((tmp_path / "work" / "outcomes.json").read_text())


def test_a_run_without_a_divergence_is_one_line(arguments, tmp_path, capsys):
    (tmp_path / "bin" / "llama-perplexity").write_text("#!/bin/sh\n")
    assert ablate.main(arguments) == 1
    assert "no divergence" in capsys.readouterr().err
