#!/usr/bin/env python3
"""What each step of fitting brings and costs: a model coded without a text, with its own, with yours, and so on.

Every build starts anew, so that its time is that of the whole command. Shown are time, the largest memory (pages
of the mapped model that were touched among it), Kullback-Leibler divergence from the base and perplexity over the
base's on every text, each with the standard error that llama-perplexity gives. Finished steps are kept in --folder
and used again. Writes a Markdown table to standard output. Python's standard library only.

    scripts/steps.py --model M.gguf --fit fit.txt --text text.txt --folder results/steps --layers 4-7
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from programs import BASE_LOGITS, ProgramError, divergence_run, kept_outcomes, model_flags, positive

MIB = 1 << 20


@dataclass
class Outcome:
    """Of one step."""

    seconds: float
    peak: int
    # Of every text: value and error.
    divergence: list[list[float]]
    perplexity: list[list[float]]


def steps(args: argparse.Namespace) -> dict[str, list]:
    """Names with the flags of statecells-build."""
    own, text = ["--tokens", args.tokens], ["--tokens", args.tokens, "-f", args.fit]
    sequential = [*text, "--sequential", 1]
    return {
        "no text (`--no-calib`)": ["--no-calib"],
        "its own text (`--sequential 0`)": [*own, "--sequential", 0],
        "its own text, `--sequential 1`": [*own, "--sequential", 1],
        "`-f` (`--sequential 0`)": [*text, "--sequential", 0],
        "`-f`, `--sequential 1`": sequential,
        f"`-f`, `--sequential 1 --tune-ffn {args.tune_ffn}`": [*sequential, "--tune-ffn", args.tune_ffn],
        f"`-f`, `--sequential 1 --tune {args.tune}`": [*sequential, "--tune", args.tune],
    }


def measured(command: list) -> tuple[float, int]:
    """Seconds and largest memory of a program that must succeed."""
    started = time.monotonic()
    try:
        child = subprocess.Popen([str(a) for a in command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise ProgramError(f"{command[0]}: {error.strerror}; run ./scripts/quickstart.sh --to build") from None
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise ProgramError(f"{' '.join(str(a) for a in command)}\nended with code {child.returncode}")
    return time.monotonic() - started, 1024 * usage.ru_maxrss


def of_log(log: str, name: str) -> list[float]:
    """The value called `name` and its error."""
    found = re.search(rf"{name}\s*:\s*(\S+) ±\s*(\S+)", log)
    if not found:
        raise ProgramError(f"llama-perplexity gave no '{name}'")
    return [float(found[1]), float(found[2])]


def texts(args: argparse.Namespace) -> dict[Path, Path]:
    """The texts that are measured on, and where the base's logits on each are."""
    also = {text: args.folder / f"base-{text.stem}.kld" for text in args.also}
    return {args.text: args.folder / BASE_LOGITS, **also}


def measure(args: argparse.Namespace, flags: list) -> Outcome:
    coded = args.folder / "coded.gguf"
    # A calibration that the step before kept would save the time that is measured.
    for kept in args.folder.glob("coded.*"):
        kept.unlink()
    layers = ["--layers", args.layers] if args.layers else []
    line = [args.bin_dir / "statecells-build", "-i", args.model, "-o", coded, "-t", args.threads, "--S", args.sections]
    seconds, peak = measured([*line, *layers, *flags])
    found = Outcome(seconds, peak, [], [])
    for text, base_logits in texts(args).items():
        log = divergence_run(args, text, base_logits, coded, "--statecells", "--kl-divergence")
        found.divergence.append(of_log(log, r"Mean\s+KLD"))
        found.perplexity.append(of_log(log, r"Mean PPL\(Q\)/PPL\(base\)"))
    return found


def table(found: dict[str, Outcome], names: list[str]) -> str:
    """With the names of the texts, if there are several."""
    of_text = [f" on {name}" for name in names] if len(names) > 1 else [""]
    cells = ["fitted to", "time", "largest memory"]
    cells += [cell + text for text in of_text for cell in ("KL divergence", "perplexity over the base's")]
    lines = ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]
    for name, o in found.items():
        minutes, seconds = divmod(round(o.seconds), 60)
        cells = [name, f"{minutes} min {seconds:02} s", f"{o.peak / MIB:.0f} MiB"]
        for divergence, perplexity in zip(o.divergence, o.perplexity, strict=True):
            cells.append(f"{divergence[0]:.5f} +- {divergence[1]:.5f}")
            cells.append(f"{perplexity[0]:.4f} +- {perplexity[1]:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_flags(parser, chunks=16)
    parser.add_argument("--fit", type=Path, required=True, help="text to fit to, none of --text")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="other texts to run on")
    parser.add_argument("--folder", type=Path, required=True, help="for models and finished steps")
    parser.add_argument("--layers", help="that are coded (default: all)")
    parser.add_argument("--sections", type=positive, default=6, help="S (default %(default)s)")
    parser.add_argument("--tokens", type=positive, default=8192, help="to fit to (default %(default)s)")
    parser.add_argument("--tune-ffn", type=positive, default=20, help="steps (default %(default)s)")
    parser.add_argument("--tune", type=positive, default=20, help="steps (default %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    try:
        found = kept_outcomes(args, steps(args), measure, Outcome, texts(args))
        print(table(found, [text.stem for text in texts(args)]))
    except (ProgramError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
