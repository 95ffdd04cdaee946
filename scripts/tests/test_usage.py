"""Help and usage errors of every script."""

import subprocess

import pytest
from conftest import SCRIPTS

ALL = sorted(p.name for p in SCRIPTS.glob("*.sh") if p.name != "lib.sh")


def test_there_are_scripts():
    assert {"quickstart.sh", "test.sh", "build-llama.sh"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_help_tells_the_usage(run_script, name):
    result = run_script(name, "--help")
    assert result.returncode == 0, result.stderr
    assert f"usage: scripts/{name}" in result.stdout
    assert result.stderr == ""


# These hand their arguments on.
OPEN = {"test.sh", "statecells-eval.sh"}


@pytest.mark.parametrize("name", [n for n in ALL if n not in OPEN])
def test_an_unknown_option_is_a_usage_error(run_script, name):
    result = run_script(name, "--no-such-option")
    assert result.returncode == 2
    assert result.stderr == f"error: unknown option '--no-such-option'; see {name} --help\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("quickstart.sh", ["--threads", "0"], "--threads needs a number above 0"),
        ("quickstart.sh", ["--threads"], "--threads needs a number above 0"),
        ("quickstart.sh", ["--to", "9"], "no step '9'"),
        ("quickstart.sh", ["--only", ""], "no step ''"),
        ("build-llama.sh", ["--jobs", "x"], "--jobs needs a number above 0"),
        ("fetch-llama.sh", ["--into"], "--into needs a folder"),
        ("make-results.sh", ["--sizes", "6;7"], "--sizes needs a list such as 6,7,8"),
        ("make-results.sh", ["--tune", "60"], "--sequential, --tune and --model go with --sizes"),
        ("make-results.sh", ["--sequential", "1"], "--sequential, --tune and --model go with --sizes"),
        ("make-results.sh", ["--model", "none.gguf"], "--model needs a file"),
    ],
)
def test_bad_values_are_usage_errors(run_script, name, arguments, message):
    result = run_script(name, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def bash(program, **options):
    return subprocess.run(
        ["bash", "-c", f'source "$0/lib.sh"; {program}', SCRIPTS], capture_output=True, text=True, check=False, **options
    )


def test_a_failed_step_is_named_with_the_way_on():
    result = bash('step "first" "x" true; step "second thing" "do that" false; echo not reached')
    assert result.returncode == 1
    assert "== second thing" in result.stdout
    assert "not reached" not in result.stdout
    assert result.stderr == "failed at step: second thing (exit code 1)\nway on: do that\n"


def test_an_ended_step_is_not_blamed():
    result = bash('step "first" "x" true; exit 3')
    assert result.returncode == 3
    assert result.stderr == ""


def test_temporary_files_go_whatever_happens(tmp_path):
    part = tmp_path / "half made"
    result = bash(f'TEMPORARY+=("{part}"); mkdir "{part}"; die "no"')
    assert result.returncode == 1
    assert not part.exists()


def test_a_lock_keeps_two_runs_apart(tmp_path):
    """Each run appends 'in' and 'out'; without the lock the two would mix."""
    log, lock = tmp_path / "log", tmp_path / "a lock"
    program = f'work() {{ echo in >>"{log}"; sleep 0.5; echo out >>"{log}"; }}; with_lock "{lock}" work'
    runs = [
        subprocess.Popen(["bash", "-c", f'source "$0/lib.sh"; {program}', SCRIPTS], stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [r.wait(timeout=30) for r in runs] == [0, 0]
    assert log.read_text().split() == ["in", "out", "in", "out"]
