#!/usr/bin/env python3
"""Exact answers of a tiny transformer, by llama-completion on the exported file.

usage: tiny_accuracy.py [--program FILE] [--flags FLAGS] [-j N] MODEL.gguf EXAMPLES.jsonl [JSON]

Asks every prompt alone, greedily, and counts the answers that are right to the letter, their newline with them.
Prints a table; writes the counts to JSON. Ends with 3 if the aims are missed: 99 % of copy and brackets,
95 % of sums. FLAGS go to llama-completion (--flags=--seeddelta).
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from programs import ROOT, positive, write_json

AIMS = {"copy": 0.99, "sum": 0.95, "brackets": 0.99}
# More than the longest answer has, so that one without an end is seen.
N_PREDICT = 12
SECONDS = 60


def ask(command: list[str], prompt: str) -> str:
    """What the model writes behind the prompt."""
    fixed = ["-no-cnv", "--no-display-prompt", "-n", N_PREDICT, "--temp", 0, "-c", 64, "-t", 1, "--no-warmup"]
    run = subprocess.run(
        [*command, *map(str, fixed), "-p", prompt], capture_output=True, text=True, errors="replace", timeout=SECONDS
    )
    if run.returncode != 0:
        last = run.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{command[0]} ended with {run.returncode}: {last[0]}")
    return run.stdout


def count(examples: list[dict], answers: list[str]) -> dict[str, dict[str, int]]:
    """Task -> asked and exact."""
    asked, exact = Counter(), Counter()
    for example, answer in zip(examples, answers, strict=True):
        asked[example["task"]] += 1
        exact[example["task"]] += answer.startswith(example["answer"] + "\n")
    return {task: {"asked": n, "exact": exact[task]} for task, n in asked.items()}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / "bin/llama-completion"
    parser.add_argument("--program", type=Path, default=default, help="llama-completion (default: %(default)s)")
    parser.add_argument("--flags", default="", help="more flags for it")
    parser.add_argument("-j", type=positive, default=os.cpu_count(), help="programs at a time (default: one per core)")
    parser.add_argument("model", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("json", type=Path, nargs="?")
    args = parser.parse_args(arguments)
    command = [str(args.program), "-m", str(args.model), *args.flags.split()]
    try:
        examples = [json.loads(line) for line in args.examples.read_text(encoding="utf-8").splitlines()]
        with ThreadPoolExecutor(args.j) as pool:
            answers = list(pool.map(lambda e: ask(command, e["prompt"]), examples))
    except (OSError, ValueError, RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"tiny_accuracy.py: error: {error}", file=sys.stderr)
        return 1
    counts = count(examples, answers)
    rates = {task: c["exact"] / c["asked"] for task, c in counts.items()}
    for task, c in counts.items():
        print(f"{task:8} {c['exact']:4} of {c['asked']} exact, {100 * rates[task]:.2f} % (aim {100 * AIMS[task]:.0f} %)")
    if args.json:
        write_json(args.json, counts)
    return 0 if all(rates[task] >= AIMS[task] for task in rates) else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
