"""The table of the steps of fitting, with stand-ins for the programs."""

import pytest
import steps

# Leaves a calibration behind, as a build does that makes one.
BUILDER = """#!/bin/sh
echo "$*" >>"$CALLS"
while [ $# -gt 0 ]; do
  if [ "$1" = -o ]; then
    [ ! -e "${2%.gguf}.calib.gguf" ] || exit 1
    touch "$2" "${2%.gguf}.calib.gguf"
  fi
  shift
done
"""
FOUND = ["Mean PPL(Q)/PPL(base)  :  1.021 ± 0.004", "Mean    KLD:   0.0412 ± 0.001"]


@pytest.fixture
def arguments(tmp_path, stand_ins):
    folder = stand_ins(BUILDER, FOUND)
    line = ["--model", "m", "--fit", "f", "--text", "t", "--folder", tmp_path / "work", "--bin-dir", folder]
    return [str(a) for a in [*line, "--layers", "4-7", "--tune", 3]]


def test_every_step_has_a_row_and_starts_anew(arguments, tmp_path, capsys):
    assert steps.main(arguments) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 7
    for row in rows:
        assert row[3:] == ["0.04120 +- 0.00100", "1.0210 +- 0.0040 |"]
        assert row[1].startswith("0 min 0") and float(row[2].removesuffix(" MiB")) > 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == len(set(calls)) == 7 and all("--layers 4-7" in c and "--S 6" in c for c in calls)
    assert sum("-f f" in c for c in calls) == 4 and "--tune 3" in calls[-1]
    assert steps.main(arguments) == 0
    assert (tmp_path / "calls").read_text().splitlines() == calls


def test_every_text_has_its_columns(arguments, tmp_path, capsys):
    assert steps.main([*arguments, "--also", "code.txt"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[3:5] == ["KL divergence on t", "perplexity over the base's on t"]
    assert "KL divergence on code" in head
    assert all(row.count("0.04120 +- 0.00100 | 1.0210 +- 0.0040") == 2 for row in rows)
    assert len((tmp_path / "calls").read_text().splitlines()) == 7
    # What is kept of two texts says nothing of one.
    assert steps.main(arguments) == 0
    assert all(row.count("0.04120") == 1 for row in capsys.readouterr().out.splitlines()[2:])
    assert len((tmp_path / "calls").read_text().splitlines()) == 14


def test_a_build_that_fails_is_named(arguments, tmp_path, capsys):
    (tmp_path / "bin" / "statecells-build").write_text("#!/bin/sh\nexit 3\n")
    assert steps.main(arguments) == 1
    assert "ended with code 3" in capsys.readouterr().err


def test_a_run_without_a_divergence_is_one_line(arguments, tmp_path, capsys):
    (tmp_path / "bin" / "llama-perplexity").write_text("#!/bin/sh\n")
    assert steps.main(arguments) == 1
    assert "llama-perplexity gave no" in capsys.readouterr().err
