#!/usr/bin/env python3
"""Where a coded model's perplexity and divergence come from: which tokens, which places, how sure the base was.

usage: where_lost.py MODEL BASE CODED...

BASE and every CODED are logits of the same text, by llama-perplexity --kl-divergence-base FILE (without --kl-divergence) on MODEL and
on files made of it. For every CODED prints a table: what share of the tokens a group has, their mean divergence from the base, their
mean loss (negative log-likelihood, in nats) above the base's, and what share of all loss that is. A last line tells whether
the coded model is surer or less sure than the base, and the loss with the softmax's temperature that suits it best: a loss that
a temperature removes is no lost knowledge. Needs the packages gguf and numpy (scripts/setup-tools.sh --test).
"""

import struct
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

MAGIC = b"_logits_"
TEMPERATURES = np.linspace(0.9, 1.1, 21)
# Entropies of the base in nats, from surest to least sure.
SURENESS = (0.5, 2.0, 4.0)
# Tokens whose probabilities are in memory together.
BATCH = 32
SPACES = ("Ġ", "▁")


class LogitsError(Exception):
    """A file that holds no logits, or others than were expected."""


@dataclass
class Tokens:
    """Of all tokens that were predicted, [n]."""

    # The token, and how far into its context it stands.
    target: np.ndarray
    place: np.ndarray
    entropy: np.ndarray
    entropy_coded: np.ndarray
    divergence: np.ndarray
    # Negative log-likelihoods, in nats.
    loss: np.ndarray
    loss_coded: np.ndarray
    # At every temperature, [n, TEMPERATURES].
    tempered: np.ndarray


@dataclass
class Header:
    """What a file of logits begins with."""

    n_context: int
    n_vocabulary: int
    # [chunks, n_context]
    tokens: np.ndarray


def read_header(file: BinaryIO, path: str) -> Header:
    """The header, which leaves `file` at the first token's values."""
    if file.read(len(MAGIC)) != MAGIC:
        raise LogitsError(f"{path}: no logits of llama-perplexity; write them with --kl-divergence-base {path}")
    n_context, n_vocabulary, n_chunks = struct.unpack("<3I", file.read(12).ljust(12, b"\0"))
    tokens = file.read(4 * n_context * n_chunks)
    if len(tokens) != 4 * n_context * n_chunks or not tokens:
        raise LogitsError(f"{path}: ends within its tokens; write it anew")
    return Header(n_context, n_vocabulary, np.frombuffer(tokens, dtype="<i4").reshape(n_chunks, n_context))


def log_probabilities(file: BinaryIO, path: str, header: Header, n: int) -> np.ndarray:
    """Of the next `n` tokens, [n, n_vocabulary]: 16 bits each, with a scale and a smallest value for every token."""
    width = 2 * ((header.n_vocabulary + 1) // 2) + 4
    packed = file.read(2 * n * width)
    if len(packed) != 2 * n * width:
        raise LogitsError(f"{path}: ends before its last token; write it anew")
    raw = np.frombuffer(packed, dtype="<u2").reshape(n, width)
    scale, least = np.ascontiguousarray(raw[:, :4]).view("<f4").T[..., None]
    values = raw[:, 4 : 4 + header.n_vocabulary] * scale + least
    return values - np.log(np.exp(values).sum(axis=1, keepdims=True))


def compared(base: np.ndarray, coded: np.ndarray, target: np.ndarray) -> list[np.ndarray]:
    """The columns of `Tokens` from entropy on, of some tokens' log-probabilities, [n, vocabulary] each."""
    rows = np.arange(len(target))
    p, q = np.exp(base), np.exp(coded)
    tempered = []
    for temperature in TEMPERATURES:
        scaled = coded / temperature
        tempered.append(np.log(np.exp(scaled).sum(axis=1)) - scaled[rows, target])
    return [
        -(p * base).sum(axis=1),
        -(q * coded).sum(axis=1),
        (p * (base - coded)).sum(axis=1),
        -base[rows, target],
        -coded[rows, target],
        np.stack(tempered, axis=1),
    ]


def read(base_path: str, coded_path: str) -> Tokens:
    """Both files, side by side."""
    with Path(base_path).open("rb") as base, Path(coded_path).open("rb") as coded:
        header, other = read_header(base, base_path), read_header(coded, coded_path)
        if header.n_vocabulary != other.n_vocabulary or not np.array_equal(header.tokens, other.tokens):
            raise LogitsError(f"{coded_path}: of another text or context than {base_path}; use the same -f, -c and --chunks")
        first = header.n_context // 2
        places = np.arange(first + 1, header.n_context)
        parts = []
        for chunk in header.tokens:
            for at in range(0, len(places), BATCH):
                place = places[at : at + BATCH]
                both = [
                    log_probabilities(file, path, header, len(place))
                    for file, path in ((base, base_path), (coded, coded_path))
                ]
                parts.append([chunk[place], place, *compared(*both, chunk[place])])
    return Tokens(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def kind(text: str) -> str:
    """What sort of token that is."""
    begins = text.startswith(SPACES)
    word = text.lstrip("".join(SPACES))
    if not word or set(word) <= set("Ċ\n\tĉč"):
        return "blank or new line"
    if any(c.isdigit() for c in word):
        return "number"
    if not word[0].isalpha():
        return "punctuation"
    if word[0].isupper():
        return "capitalized"
    return "word begins" if begins else "word goes on"


def groups(tokens: Tokens, vocabulary: list[str]) -> list[tuple[str, np.ndarray]]:
    """Names and masks."""
    kinds = np.array([kind(vocabulary[t]) for t in tokens.target])
    found = [(name, kinds == name) for name in sorted(set(kinds))]
    for low, high in pairwise([0.0, *SURENESS, np.inf]):
        within = (tokens.entropy >= low) & (tokens.entropy < high)
        found.append((f"base's entropy {low:g} to {high:g}", within))
    edges = np.linspace(tokens.place.min(), tokens.place.max() + 1, 5).astype(int)
    for low, high in pairwise(edges):
        found.append((f"place {low} to {high - 1}", (tokens.place >= low) & (tokens.place < high)))
    worst = np.argsort(-tokens.divergence)
    for share in (0.01, 0.1):
        mask = np.zeros(len(worst), dtype=bool)
        mask[worst[: max(1, round(share * len(worst)))]] = True
        found.append((f"the {share:.0%} that diverge most", mask))
    return found


def table(tokens: Tokens, vocabulary: list[str]) -> str:
    """In Markdown."""
    lost = tokens.loss_coded - tokens.loss
    lines = ["| tokens | share | divergence | loss above the base's | share of all loss |", "|---|---|---|---|---|"]

    def line(name: str, mask: np.ndarray) -> None:
        if mask.any():
            error = lost[mask].std() / mask.sum() ** 0.5
            lines.append(
                f"| {name} | {mask.mean():.1%} | {tokens.divergence[mask].mean():.4f} | {lost[mask].mean():.4f} +- {error:.4f} "
                f"| {lost[mask].sum() / lost.sum():.0%} |"
            )

    line("all", np.ones(len(lost), dtype=bool))
    for name, mask in groups(tokens, vocabulary):
        line(name, mask)
    tempered = tokens.tempered.mean(axis=0)
    best = int(tempered.argmin())
    lines += [
        "",
        f"Entropy {tokens.entropy.mean():.4f}, coded {tokens.entropy_coded.mean():.4f}; loss {tokens.loss.mean():.4f}, coded "
        f"{tokens.loss_coded.mean():.4f}, at temperature {TEMPERATURES[best]:.2f} {tempered[best]:.4f}.",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    if len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    from gguf import GGUFReader

    field = GGUFReader(arguments[0]).fields["tokenizer.ggml.tokens"]
    vocabulary = [bytes(field.parts[i]).decode("utf-8", "replace") for i in field.data]
    try:
        for coded in arguments[2:]:
            print(f"{coded}\n\n{table(read(arguments[1], coded), vocabulary)}\n")
    except (OSError, LogitsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
