#!/usr/bin/env python3
"""Cuts WikiText into articles to calibrate on and to measure on, and mixes the former with another text.

usage: mix_texts.py WIKITEXT CALIBRATION FOLDER

WIKITEXT has articles under lines such as " = Title = ". Every fourth article, by a hash of its title, goes to
FOLDER/wikitext.txt, which is measured on; the next fourth to FOLDER/wikitext-tuning.txt, for what is neither fitted nor
measured on (sensitivities); the rest, in turn with pieces of CALIBRATION (a text that is fitted on already, such as
models/text/calibration.txt of the quickstart), to FOLDER/mixed-calibration.txt. Python's standard library only.
"""

import hashlib
import re
import sys
from pathlib import Path

TITLE = re.compile(r"^ = [^=\n]+ = $", re.MULTILINE)
PARTS = 4


def articles(text: str) -> list[str]:
    """From title to title."""
    starts = [match.start() for match in TITLE.finditer(text)]
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)])]


def part(article: str) -> int:
    """0 to PARTS - 1, by the title."""
    title = article.split("\n", 1)[0].strip()
    return hashlib.sha256(title.encode()).digest()[0] % PARTS


def pieces(text: str, sizes: list[int]) -> list[str]:
    """Consecutive pieces of about the sizes, cut at line ends."""
    found, start = [], 0
    for size in sizes:
        end = text.find("\n", start + size) + 1
        if end == 0:
            break
        found.append(text[start:end])
        start = end
    return found


def mix(wikitext: str, other: str) -> dict[str, str]:
    """File name -> text."""
    parts = [[a for a in articles(wikitext) if part(a) == i] for i in range(PARTS)]
    fitted = [a for same in parts[2:] for a in same]
    if not parts[0] or not parts[1] or not fitted:
        raise ValueError("has too few articles: lines such as ' = Title = ' begin one")
    others = pieces(other, [len(a) for a in fitted])
    if len(others) < len(fitted):
        raise ValueError("the text to mix with is shorter than the articles")
    return {
        "wikitext.txt": "".join(parts[0]),
        "wikitext-tuning.txt": "".join(parts[1]),
        "mixed-calibration.txt": "".join(a + b for a, b in zip(fitted, others)),
    }


def main(arguments: list[str]) -> int:
    if len(arguments) != 3:
        print(__doc__.strip())
        return 0 if arguments in (["-h"], ["--help"]) else 2
    wikitext, other, folder = map(Path, arguments)
    try:
        made = mix(wikitext.read_text(encoding="utf-8"), other.read_text(encoding="utf-8"))
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in made.items():
            (folder / name).write_text(text, encoding="utf-8")
            print(f"{folder / name}: {len(text.encode())} bytes")
    except (OSError, ValueError) as error:
        print(f"error: {wikitext}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
