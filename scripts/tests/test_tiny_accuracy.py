"""What counts as an exact answer, with a stand-in for llama-completion."""

import json

import pytest
import tiny_accuracy

# Knows how to copy; of sums it forgets the end, and everything else is too much for it.
PROGRAM = """#!/bin/sh
while [ "$#" -gt 0 ]; do
  case $1 in -p) prompt=$2 ;; esac
  shift
done
case $prompt in
  c*) body=${prompt#c}; printf '%s\\nc' "${body%=}" ;;
  s*) printf '95' ;;
  *) echo "no such prompt" >&2; exit 7 ;;
esac
"""


@pytest.fixture
def run(tmp_path, capsys):
    program = tmp_path / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)

    def run(*examples):
        path, counts = tmp_path / "test.jsonl", tmp_path / "counts.json"
        path.write_text("".join(json.dumps(dict(zip(("task", "prompt", "answer"), e))) + "\n" for e in examples))
        code = tiny_accuracy.main(["--program", str(program), "model.gguf", str(path), str(counts)])
        return code, capsys.readouterr(), json.loads(counts.read_text()) if counts.exists() else None

    return run


def test_an_answer_counts_with_its_end(run):
    code, output, counts = run(("copy", "cab=", "ab"), ("sum", "s10+58=", "95"))
    assert code == 3
    assert counts == {"copy": {"asked": 1, "exact": 1}, "sum": {"asked": 1, "exact": 0}}
    assert "1 of 1 exact, 100.00 %" in output.out


def test_the_aims_decide(run):
    assert run(*[("copy", "cab=", "ab")] * 99, ("copy", "cab=", "ac"))[0] == 0
    assert run(*[("copy", "cab=", "ab")] * 97, *[("copy", "cab=", "ac")] * 2)[0] == 3


def test_a_program_that_fails_is_named(run):
    code, output, counts = run(("brackets", "b(=", ")"))
    assert (code, counts) == (1, None)
    assert "ended with 7: no such prompt" in output.err
