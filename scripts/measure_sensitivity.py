#!/usr/bin/env python3
"""Measures how much an error in each layer's FFN changes what the model says.

For every layer, a copy of the model with that layer alone coded coarsely is run on a text, and the
mean Kullback-Leibler divergence from the base model is divided by the sum of the layer's errors (by
token, on the calibration's hold-out). The result is a JSON object for statecells-build --sensitivity,
scaled to a mean of 1. Use a text that is neither calibrated on nor evaluated on. Python's standard
library only.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from gguf_header import GgufError, read_tensors
from programs import (
    ProgramError, calibrated_model_flags, divergence_run, mean_divergence, positive, run, write_json,
)  # fmt: skip

WEIGHT = re.compile(r"blk\.(\d+)\.ffn_(?:gate|up|down)\.weight$")


def layers_of(model: Path) -> list[int]:
    found = (WEIGHT.match(t.name) for t in read_tensors(model))
    layers = sorted({int(m[1]) for m in found if m})
    if not layers:
        raise ProgramError(f"{model}: no FFN weights, is it the dense model?")
    return layers


class Meter:
    """Runs the programs in a folder of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.base_logits = folder / "base.kld"

    def perplexity(self, model: Path, *flags: object) -> str:
        return divergence_run(self.args, self.base_logits, model, *flags)

    def divergence(self, layer: int) -> float:
        """Mean KL divergence from the base with this layer coded, over the sum of its tensors' errors."""
        args, coded, report = self.args, self.folder / "coded.gguf", self.folder / "report.json"
        line = [args.bin_dir / "statecells-build", "-i", args.model, "-o", coded, "--force", "--scheme", "sections"]
        line += ["--S", args.sections, "--beam", 4, "--rounds", 0, "--layers", layer, "--calib", args.calib]
        run([str(a) for a in [*line, "-t", args.threads, "--report-json", report]])
        tensors = json.loads(report.read_text())["tensors"]
        error = sum(t["functional"]["error_held_out_tokens"] for t in tensors)
        log = self.perplexity(coded, "--statecells", "--kl-divergence")
        return max(mean_divergence(log), 0.0) / error


def measure(args: argparse.Namespace) -> dict[str, float]:
    layers = layers_of(args.model)
    with tempfile.TemporaryDirectory(dir=args.output.resolve().parent, prefix=".sensitivity-") as folder:
        meter = Meter(args, Path(folder))
        print("   base", file=sys.stderr, flush=True)
        meter.perplexity(args.model)
        raw = {}
        for number, layer in enumerate(layers, 1):
            raw[layer] = meter.divergence(layer)
            print(f"   [{number}/{len(layers)}] layer {layer}: {raw[layer]:.4f}", file=sys.stderr, flush=True)
    mean = sum(raw.values()) / len(raw)
    if not mean > 0:
        raise ProgramError("no layer makes a difference: use more --chunks or a smaller --S")
    targets = ("gate", "up", "down")
    return {f"blk.{layer}.ffn_{t}": round(value / mean, 4) for layer, value in raw.items() for t in targets}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    calibrated_model_flags(parser, chunks=6)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sections", type=positive, default=5, help="S of the coarse code (default %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    try:
        write_json(args.output, measure(args))
    except (ProgramError, GgufError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
