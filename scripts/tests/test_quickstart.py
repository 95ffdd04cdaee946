"""Step 5 of the quickstart with a stand-in for the builder: what is skipped, resumed, made anew."""

import os
import shutil
import subprocess

import pytest
from conftest import SCRIPTS

# Notes its arguments; makes the output unless told to die half-way.
BUILDER = """#!/bin/sh
# {mark}
echo "$@" >>"{log}"
if [ -n "$DIE" ]; then echo "statecells-build: no space left" >&2; exit 1; fi
while [ "$1" != -o ]; do shift; done
echo coded >"$2"
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "a checkout"
    shutil.copytree(SCRIPTS, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bin").mkdir()
    (folder / "models").mkdir()
    return folder


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def builder(checkout, log):
    def make(mark):
        program = checkout / "bin/statecells-build"
        program.write_text(BUILDER.format(mark=mark, log=log))
        program.chmod(0o755)

    make("first")
    return make


def encode(checkout, **environment):
    return subprocess.run(
        [checkout / "scripts/quickstart.sh", "--only", "encode", "--threads", "3"],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def calls(log):
    return log.read_text().splitlines() if log.exists() else []


def test_done_work_is_skipped(checkout, builder, log):
    first = encode(checkout)
    assert first.returncode == 0, first.stderr
    assert (checkout / "models/smollm2-statecells.gguf").exists()
    assert "-t 3" in calls(log)[0]
    second = encode(checkout)
    assert second.returncode == 0
    assert "already made" in second.stdout
    assert len(calls(log)) == 1


def test_another_program_makes_it_anew(checkout, builder, log):
    encode(checkout)
    builder("second")
    assert encode(checkout).returncode == 0
    assert len(calls(log)) == 2
    assert "--force" in calls(log)[1].split()


def test_a_lost_output_is_made_again(checkout, builder, log):
    encode(checkout)
    (checkout / "models/smollm2-statecells.gguf").unlink()
    assert encode(checkout).returncode == 0
    assert len(calls(log)) == 2


def test_an_interrupted_run_goes_on(checkout, builder, log):
    failed = encode(checkout, DIE="1")
    assert failed.returncode == 1
    assert "no space left" in failed.stderr
    assert "failed at step: 5 encode" in failed.stderr
    assert "./scripts/quickstart.sh again" in failed.stderr.splitlines()[-1]
    assert encode(checkout).returncode == 0
    assert "--resume" in calls(log)[1].split()
    assert "--resume" not in calls(log)[0].split()


def test_without_the_program_the_step_to_run_is_named(checkout):
    result = encode(checkout)
    assert result.returncode == 1
    assert "--to build" in result.stderr
