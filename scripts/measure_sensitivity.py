#!/usr/bin/env python3
"""Measures how much an error in each FFN matrix changes what the model says.

For every layer, a copy of the model with that layer alone coded coarsely is run on a text, and the
mean Kullback-Leibler divergence from the base model is divided by the sum of the layer's errors (by
token, on the calibration's hold-out). Then the same for each of gate, up and down, coded in all layers:
by how much it diverges more than the layers' figures say is a factor of its own. The result is a JSON
object for statecells-build --sensitivity, scaled to a mean of 1. Use a text that is neither calibrated on
nor evaluated on. Python's standard library only.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from programs import (
    ProgramError, calibrated_model_flags, coded_run, divergence_run, mean_divergence, positive, run, write_json,
)  # fmt: skip


def matrices_of(args: argparse.Namespace) -> dict[str, tuple[int, str]]:
    """Layer and target of every FFN matrix that text runs through, by its name in the result."""
    seen = json.loads(run([str(args.bin_dir / "statecells-inspect"), str(args.model), "--json"]))
    n_layers = seen["n_layers"] - seen["n_mtp_layers"]
    dense = [t for t in seen["tensors"] if t["scheme"] is None and t["layer"] < n_layers]
    if not dense:
        raise ProgramError(f"{args.model}: no FFN weights, is it the dense model?")
    return {t["name"]: (t["layer"], t["target"]) for t in dense}


class Meter:
    """Runs the programs in a folder of its own."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.base_logits = folder / "base.kld"

    def coded(self, *selection: object) -> tuple[float, dict[str, float]]:
        """Mean KL divergence from the base with the selected matrices coded, and their errors."""
        flags = ["--scheme", "sections", "--S", self.args.sections, "--beam", 4, "--rounds", 0, "--calib", self.args.calib]
        report, log = coded_run(self.args, self.folder, self.base_logits, *flags, *selection)
        tensors = report["tensors"]
        errors = {t["name"].removesuffix(".weight"): t["functional"]["error_held_out_tokens"] for t in tensors}
        return max(mean_divergence(log), 0.0), errors


def of_layers(meter: Meter, layers: list[int]) -> dict[int, float]:
    """Divergence over the sum of errors, layer by layer."""
    found = {}
    for number, layer in enumerate(layers, 1):
        divergence, errors = meter.coded("--layers", layer)
        found[layer] = divergence / sum(errors.values())
        print(f"   [{number}/{len(layers)}] layer {layer}: {found[layer]:.4f}", file=sys.stderr, flush=True)
    return found


def of_targets(
    meter: Meter, matrices: dict[str, tuple[int, str]], by_layer: dict[int, float]
) -> dict[str, float]:
    """Divergence with a target coded in all layers, over what its errors and the layers' figures add up to."""
    found = {}
    for target in sorted({target for _, target in matrices.values()}):
        divergence, errors = meter.coded("--targets", target)
        expected = sum(error * by_layer[matrices[name][0]] for name, error in errors.items())
        found[target] = divergence / expected if expected > 0 else 0.0
        print(f"   {target}: {found[target]:.4f} times that", file=sys.stderr, flush=True)
    return found


def measure(args: argparse.Namespace) -> dict[str, float]:
    matrices = matrices_of(args)
    with tempfile.TemporaryDirectory(dir=args.output.resolve().parent, prefix=".sensitivity-") as folder:
        meter = Meter(args, Path(folder))
        print("   base", file=sys.stderr, flush=True)
        divergence_run(args, meter.base_logits, args.model)
        by_layer = of_layers(meter, sorted({layer for layer, _ in matrices.values()}))
        by_target = of_targets(meter, matrices, by_layer)
    raw = {name: by_layer[layer] * by_target[target] for name, (layer, target) in matrices.items()}
    mean = sum(raw.values()) / len(raw)
    if not mean > 0:
        raise ProgramError("no layer makes a difference: use more --chunks or a smaller --S")
    return {name: round(value / mean, 4) for name, value in raw.items()}


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
    except (ProgramError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
