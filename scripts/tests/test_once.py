"""`once` of lib.sh: what is skipped, made anew, and gone on with."""

import subprocess

import pytest
from conftest import SCRIPTS

CALL = 'source "$1/lib.sh"; cd "$2"; work() { echo "ran$GOES_ON" >>log; "$1"; echo made >out; }; '
CALL += 'once "the work" .stamp "$3" out -- work "$4"'


@pytest.fixture
def once(tmp_path):
    """Runs it with these inputs; the result is what was said, and the runs of the work so far."""

    def run(inputs, work="true"):
        result = subprocess.run(
            ["bash", "-c", CALL, "bash", SCRIPTS, tmp_path, inputs, work],
            capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return result.returncode, result.stdout.strip(), (tmp_path / "log").read_text().split()

    return run


def test_work_is_done_once_for_the_same_inputs(once, tmp_path):
    assert once("a") == (0, "", ["ran"])
    assert once("a") == (0, "the work: already made", ["ran"])
    assert once("b") == (0, "", ["ran", "ran"])
    (tmp_path / "out").unlink()
    assert once("b") == (0, "", ["ran", "ran", "ran"])


def test_work_that_failed_is_done_again_and_knows_it(once):
    assert once("a", "false")[0] == 1
    assert once("a") == (0, "", ["ran", "ran1"])
    assert once("b", "false")[0] == 1
    assert once("c")[2][-1] == "ran", "what has begun was begun from other inputs"
