#!/usr/bin/env python3
"""Gives every file that is equal in two trees the older tree's time, and all others the time of now.

usage: adopt_times.py OLD NEW

After that NEW can take OLD's place under a build tree, and only what really changed is built again:
ninja goes by times, and a patched source made anew would otherwise look changed, or worse, a file
that is no longer patched would look older than its object. Python's standard library only.
"""

import filecmp
import os
import sys
from pathlib import Path


def adopt_times(old: Path, new: Path) -> None:
    for path in new.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        before = old / path.relative_to(new)
        if before.is_file() and filecmp.cmp(before, path, shallow=False):
            time = before.stat().st_mtime_ns
            os.utime(path, ns=(time, time))
        else:
            os.utime(path)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: adopt_times.py OLD NEW", file=sys.stderr)
        return 2
    try:
        adopt_times(Path(arguments[0]), Path(arguments[1]))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
