#!/usr/bin/env python3
"""What each part of the sections encoder brings: some layers coded with one thing changed at a time.

For every setting, the layers are coded by statecells-build and the whole model is run on a text. Shown are
the errors of the outputs on the calibration's hold-out (by token, mean over the matrices, and as a ratio to
that of the defaults), perplexity and Kullback-Leibler divergence from the base. Finished settings are kept in
--folder and used again. Writes a Markdown table to standard output. Python's standard library only.

    scripts/ablate.py --model M.gguf --calib calib.gguf --text text.txt --folder results/ablation
"""

import argparse
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from programs import (
    BASE_LOGITS, ProgramError, calibrated_model_flags, coded_run, kept_outcomes, mean_divergence, positive,
)  # fmt: skip

# Name, and what differs from the defaults.
SETTINGS = {
    "defaults": [],
    "beam 1": ["--beam", 1],
    "beam 8": ["--beam", 8],
    "beam 64": ["--beam", 64],
    "no feedback: only the moment's diagonal": ["--shrink", 1],
    "no refit under the moment": ["--rounds", 0],
    "one round of refit": ["--rounds", 1],
    "five rounds": ["--rounds", 5],
    "no sweeps": ["--sweeps", 0],
    "eight sweeps": ["--sweeps", 8],
    "damping 0.005": ["--damping", 0.005],
    "damping 0.3": ["--damping", 0.3],
    "moment not shrunk": ["--shrink", 0],
    "no exact weights": ["--outliers", 0],
    "0.4 % exact weights": ["--outliers", 0.004],
}


@dataclass
class Outcome:
    """Of one setting."""

    error: float
    bits: float
    seconds: float
    perplexity: float
    divergence: float

    @staticmethod
    def of(report: dict, log: str) -> "Outcome":
        tensors = report["tensors"]
        # As wide as they lie apart: the geometric mean lets every matrix count alike.
        logs = [math.log(t["functional"]["error_held_out_tokens"]) for t in tensors]
        divergence = mean_divergence(log)
        perplexity = re.search(r"Mean PPL\(Q\)\s*:\s*(\S+)", log)
        if not perplexity:
            raise ProgramError("llama-perplexity gave no perplexity")
        return Outcome(
            error=math.exp(sum(logs) / len(logs)),
            bits=8 * sum(t["bytes"] for t in tensors) / sum(t["d_in"] * t["d_out"] for t in tensors),
            seconds=report["seconds"],
            perplexity=float(perplexity[1]),
            divergence=divergence,
        )


def settings(args: argparse.Namespace) -> dict[str, list]:
    """All settings; those that need a file are left out without it."""
    chosen = {name: [*flags, "--calib", args.calib] for name, flags in SETTINGS.items()}
    for path in args.fewer:
        chosen[f"calibrated by {path.stem}"] = ["--calib", path]
    if args.sequential:
        every, path = args.sequential
        chosen[f"calibrated by {Path(path).stem}, --sequential {every}"] = ["--calib", path, "--sequential", every]
    size = ["--bpw", args.sections / 2 + 0.09, "--calib", args.calib]
    chosen["same size shared out by errors alone"] = size
    if args.sensitivity:
        chosen["same size shared out by errors and sensitivities"] = [*size, "--sensitivity", args.sensitivity]
    return chosen


def measure(args: argparse.Namespace, flags: list) -> Outcome:
    size = [] if "--bpw" in flags else ["--S", args.sections]
    return Outcome.of(*coded_run(args, args.folder, args.folder / BASE_LOGITS, "--layers", args.layers, *size, *flags))


def table(found: dict[str, Outcome]) -> str:
    reference = found["defaults"]
    lines = ["| setting | bits per weight | held-out error | against the defaults | perplexity | KL divergence | seconds |"]
    lines.append("|" + "---|" * 7)
    for name, o in found.items():
        cells = [name, f"{o.bits:.2f}", f"{o.error:.5f}", f"{o.error / reference.error:.3f}", f"{o.perplexity:.2f}"]
        cells += [f"{o.divergence:.4f}", f"{o.seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    calibrated_model_flags(parser, chunks=16)
    parser.add_argument("--folder", type=Path, required=True, help="for models and finished settings")
    parser.add_argument("--layers", default="0,5,11,17,23,29", help="that are coded (default %(default)s)")
    parser.add_argument("--sections", type=positive, default=6, help="S (default %(default)s)")
    parser.add_argument("--fewer", type=Path, nargs="*", default=[], help="calibrations on fewer tokens")
    parser.add_argument("--sequential", nargs=2, metavar=("LAYERS", "CALIB"), help="also recapture, with this calibration")
    parser.add_argument("--sensitivity", type=Path, help="by statecells-build --measure-sensitivity")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    try:
        texts = {args.text: args.folder / BASE_LOGITS}
        print(table(kept_outcomes(args, settings(args), measure, Outcome, texts)))
    except (ProgramError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
