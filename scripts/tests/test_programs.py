"""Running programs from scripts."""

import sys

import programs
import pytest


def test_both_streams_come_back():
    code = "import sys; sys.stderr.write('log'); sys.stdout.write('out')"
    assert programs.run([sys.executable, "-c", code]) == "outlog"


def test_a_failing_program_is_named():
    with pytest.raises(programs.ProgramError) as error:
        programs.run(["sh", "-c", "echo broken >&2; exit 7"])
    text = str(error.value)
    assert text.startswith("sh -c") and "broken" in text and text.endswith("ended with code 7")


def test_missing_programs_say_how_to_build(tmp_path):
    with pytest.raises(programs.ProgramError, match="run ./scripts/quickstart.sh"):
        programs.run([str(tmp_path / "none")])


def test_a_file_appears_complete(tmp_path):
    programs.write_json(tmp_path / "a" / "b.json", {"x": 1})
    with pytest.raises(TypeError):
        programs.write_json(tmp_path / "a" / "b.json", {"x": object()})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "x": 1\n}\n'
