#!/usr/bin/env python3
"""How many inputs of ffn_down a token could do without, one by one and in blocks.

usage: block_activity.py CALIBRATION MODEL

CALIBRATION is of MODEL, by statecells-calib with activations (--layers takes those that are wanted). An input costs its square
times the squared norm of its column of ffn_down. For every held-out token the cheapest blocks are left out as long as they
cost a share of the whole. Prints the mean share of blocks that are left out, with neurons as they stand, and ordered on the
fitted samples so that those active together are neighbours. Needs the packages gguf and numpy (scripts/setup-tools.sh --test).
"""

import sys

import numpy as np

SIZES = (1, 4, 8, 32)
LOSSES = (0.001, 0.01, 0.03, 0.1)
# Inputs of a block of the scheme sections: the order is made for these.
BLOCK = 8
STEPS = 6


def left_out(energies: np.ndarray, size: int, loss: float) -> float:
    """Mean share of blocks of `size` neighbours that may go; `energies`: [tokens, neurons]."""
    blocks = energies.reshape(len(energies), -1, size).sum(axis=2)
    blocks.sort(axis=1)
    lost = blocks.cumsum(axis=1) / blocks.sum(axis=1, keepdims=True)
    return float((lost <= loss).mean())


def bisected(features: np.ndarray, neurons: np.ndarray, size: int) -> np.ndarray:
    """`neurons` in an order in which blocks of `size` have like rows of `features`: halved again and again along the direction in
    which they differ most (principal direction divisive partitioning, Boley 1998), with halves of equal size."""
    if len(neurons) <= size:
        return neurons
    centred = features[neurons] - features[neurons].mean(axis=0)
    direction = np.random.default_rng(0).standard_normal(centred.shape[1])
    for _ in range(STEPS):
        direction = centred.T @ (centred @ direction)
        direction /= np.linalg.norm(direction) + 1e-9
    ordered = neurons[np.argsort(centred @ direction, kind="stable")]
    middle = max(1, len(neurons) // size // 2) * size
    halves = (ordered[:middle], ordered[middle:])
    return np.concatenate([bisected(features, half, size) for half in halves])


def together(energies: np.ndarray) -> np.ndarray:
    """An order of the neurons in which those active together are neighbours."""
    features = np.log(energies.T + 1e-9 * energies.mean())
    return bisected(features, np.arange(energies.shape[1]), BLOCK)


def table(layer: int, fitted: np.ndarray, held_out: np.ndarray) -> list[str]:
    lines = []
    orders = {"as they stand": np.arange(fitted.shape[1]), "together": together(fitted)}
    for name, order in orders.items():
        ordered = held_out[:, order]
        shares = [[100 * left_out(ordered, size, loss) for loss in LOSSES] for size in SIZES]
        cells = [" / ".join(f"{share:.0f}" for share in of_size) for of_size in shares]
        lines.append(f"| {layer} | {name} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    from gguf import GGUFReader, dequantize

    calibration, model = ({t.name: t for t in GGUFReader(path).tensors} for path in arguments)
    layers = sorted(int(name.split(".")[1]) for name in calibration if name.endswith("ffn_down.samples"))
    if not layers:
        print(f"{arguments[0]}: has no samples of ffn_down: make it with --max-h-dim 256", file=sys.stderr)
        return 1
    shares = " / ".join(f"{100 * loss:g}" for loss in LOSSES)
    print(f"Per cent of blocks left out where {shares} % of the output's energy may go:\n")
    print("| layer | neurons | " + " | ".join(f"blocks of {size}" for size in SIZES) + " |")
    print("|---" * (len(SIZES) + 2) + "|")
    for layer in layers:
        weight = model[f"blk.{layer}.ffn_down.weight"]
        matrix = dequantize(weight.data, weight.tensor_type)
        columns = np.square(matrix.reshape(-1, matrix.shape[-1])).sum(axis=0)

        def energies(values: str, scales: str) -> np.ndarray:
            data = calibration[f"blk.{layer}.ffn_down.{values}"].data.astype(np.float32)
            scale = np.asarray(calibration[f"blk.{layer}.ffn_down.{scales}"].data)
            return np.square(data.reshape(len(scale), -1) * scale[:, None]) * columns

        fitted, held_out = energies("samples", "sample_scale"), energies("holdout", "holdout_scale")
        print("\n".join(table(layer, fitted, held_out)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
