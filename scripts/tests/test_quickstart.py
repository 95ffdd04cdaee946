"""Steps 5 and 6 of the quickstart with stand-ins for their programs: what is skipped, resumed, made anew."""

import os
import shutil
import subprocess

import pytest
from conftest import SCRIPTS

# Notes its arguments; makes the output unless told to die half-way.
PROGRAM = """#!/bin/sh
# {mark}
echo "$(basename "$0") $@" >>"{log}"
if [ "$DIE" = "$(basename "$0")" ]; then echo "$DIE: no space left" >&2; exit 1; fi
while [ "$1" != -o ]; do shift; done
echo coded >"$2"
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a checkout"
    shutil.copytree(SCRIPTS, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bin").mkdir()
    (folder / "models/text").mkdir(parents=True)
    (folder / "models/text/calibration.txt").write_text("what is said here matters")
    return folder


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def programs(checkout, log):
    def make(mark, names=("statecells-calib", "statecells-build")):
        for name in names:
            program = checkout / "bin" / name
            program.write_text(PROGRAM.format(mark=mark, log=log))
            program.chmod(0o755)

    make("first")
    return make


def run_step(checkout, step, **environment):
    return subprocess.run(
        [checkout / "scripts/quickstart.sh", "--only", step, "--threads", "3"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def both(checkout):
    results = [run_step(checkout, "calibrate"), run_step(checkout, "encode")]
    assert [r.returncode for r in results] == [0, 0], results
    return results


def calls(log, program):
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split()[1:] for line in lines if line.startswith(f"{program} ")]


def test_done_work_is_skipped(checkout, programs, log):
    both(checkout)
    assert (checkout / "models/smollm2-statecells.gguf").exists()
    for result in both(checkout):
        assert "already made" in result.stdout
    for name in ("statecells-calib", "statecells-build"):
        assert len(calls(log, name)) == 1
        assert calls(log, name)[0][calls(log, name)[0].index("-t") + 1] == "3"


def test_another_builder_makes_the_model_anew(checkout, programs, log):
    both(checkout)
    programs("second", ["statecells-build"])
    both(checkout)
    assert len(calls(log, "statecells-calib")) == 1
    assert len(calls(log, "statecells-build")) == 2
    assert "--force" in calls(log, "statecells-build")[1]


@pytest.mark.parametrize("change", ["program", "text"])
def test_another_calibration_makes_both_anew(checkout, programs, log, change):
    both(checkout)
    if change == "program":
        programs("second", ["statecells-calib"])
    else:
        (checkout / "models/text/calibration.txt").write_text("another text")
    both(checkout)
    assert len(calls(log, "statecells-calib")) == 2
    assert len(calls(log, "statecells-build")) == 2


def test_a_lost_output_is_made_again(checkout, programs, log):
    both(checkout)
    (checkout / "models/smollm2-statecells.gguf").unlink()
    both(checkout)
    assert len(calls(log, "statecells-calib")) == 1
    assert len(calls(log, "statecells-build")) == 2


def test_an_interrupted_build_goes_on(checkout, programs, log):
    run_step(checkout, "calibrate")
    failed = run_step(checkout, "encode", DIE="statecells-build")
    assert failed.returncode == 1
    assert "no space left" in failed.stderr
    assert "failed at step: 6 encode" in failed.stderr
    assert "./scripts/quickstart.sh again" in failed.stderr.splitlines()[-1]
    assert run_step(checkout, "encode").returncode == 0
    first, second = calls(log, "statecells-build")
    assert "--resume" in second
    assert "--resume" not in first


def test_an_interrupted_calibration_starts_again(checkout, programs, log):
    failed = run_step(checkout, "calibrate", DIE="statecells-calib")
    assert failed.returncode == 1
    assert "failed at step: 5 calibrate" in failed.stderr
    both(checkout)
    assert len(calls(log, "statecells-calib")) == 2


@pytest.mark.parametrize("step", ["calibrate", "encode"])
def test_without_the_program_the_step_to_run_is_named(checkout, step):
    result = run_step(checkout, step)
    assert result.returncode == 1
    assert "--to build" in result.stderr


def test_without_a_calibration_the_step_to_run_is_named(checkout, programs):
    result = run_step(checkout, "encode")
    assert result.returncode == 1
    assert "--to calibrate" in result.stderr


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_failed_rule_is_a_result_and_an_error_is_not(checkout, programs, log, code):
    both(checkout)
    programs("first", ["statecells-eval"])
    program = checkout / "bin/statecells-eval"
    program.write_text(f'#!/bin/sh\necho "statecells-eval $@" >>"{log}"\nexit {code}\n')
    result = run_step(checkout, "compare")
    assert result.returncode == (1 if code == 1 else 0), result
    assert ("report.html" in result.stdout) == (code != 1)
    assert "--resume" in calls(log, "statecells-eval")[0]
