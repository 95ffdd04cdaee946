"""The tensor table of a GGUF file. Python's standard library only."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# GGUF metadata value types that are plain numbers, as struct formats.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, UINT32 = 8, 9, 4


class GgufError(Exception):
    """Not a readable GGUF file."""


@dataclass(frozen=True)
class Tensor:
    """Name and the bytes up to the next tensor: its data and at most one alignment of padding."""

    name: str
    n_bytes: int


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise GgufError("the header is cut off")
        return self.file.read(count)

    def number(self, form: str) -> int | float:
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> int | float | str | None:
        """A metadata value; arrays are skipped."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise GgufError(f"unknown metadata type {kind}")
        element, count = self.number("I"), self.number("Q")
        if element in NUMBERS:
            self.take(count * struct.calcsize("<" + NUMBERS[element]))
        else:
            for _ in range(count):
                self.value(element)
        return None


def _read(reader: _Reader) -> list[Tensor]:
    if reader.take(4) != MAGIC or reader.number("I") not in VERSIONS:
        raise GgufError("not a GGUF file of version 2 or 3")
    n_tensors, n_values = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(n_values):
        key = reader.string()
        metadata[key] = reader.value(reader.number("I"))
    offsets = []
    for _ in range(n_tensors):
        name = reader.string()
        reader.take(8 * reader.number("I") + 4)  # dimensions and type
        offsets.append((reader.number("Q"), name))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    start = -(-reader.file.tell() // alignment) * alignment
    ends = sorted(offset for offset, _ in offsets)[1:] + [reader.size - start]
    return [Tensor(name, end - offset) for (offset, name), end in zip(sorted(offsets), ends)]


def read_tensors(path: Path) -> list[Tensor]:
    """All tensors, in the order of their data. Raises GgufError or OSError."""
    with path.open("rb") as file:
        try:
            return _read(_Reader(file, path.stat().st_size))
        except GgufError as error:
            raise GgufError(f"{path}: {error}") from None
