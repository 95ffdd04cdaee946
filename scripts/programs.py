"""Running the project's programs from scripts, and what their command lines share."""

import argparse
import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class ProgramError(Exception):
    """A program failed or said something unexpected."""


def run(command: list[str]) -> str:
    """Standard output, then standard error."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        raise ProgramError(f"{command[0]}: {error.strerror}; run ./scripts/quickstart.sh --to build") from None
    out, log = (stream.decode("utf-8", "replace") for stream in (done.stdout, done.stderr))
    if done.returncode != 0:
        end = "\n".join(log.strip().splitlines()[-5:])
        raise ProgramError(f"{' '.join(command)}\n{end}\nended with code {done.returncode}")
    return out + log


def write_json(path: Path, value: object) -> None:
    """The file appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def positive(text: str) -> int:
    """A flag's number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value
