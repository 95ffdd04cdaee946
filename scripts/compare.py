#!/usr/bin/env python3
"""Runs a model and its dictionary-coded form side by side and prints one table.

Measures FFN bytes and file bytes (from the files), peak memory and the text of a short greedy
generation (llama-completion), perplexity on a text (llama-perplexity) and tokens per second
(llama-bench, both models in turn, medians over the rounds). Every figure comes from the programs'
own output in this run. Python's standard library only.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from gguf_header import GgufError, read_tensors

ROOT = Path(__file__).resolve().parent.parent
FFN = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.")
NOT_WEIGHTS = (".bias", ".scale")
MIB = 1 << 20


class CompareError(Exception):
    """A program failed or said something unexpected."""


def run(command: list[str]) -> tuple[str, str, int]:
    """Standard output, standard error and peak memory in bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log)
        except OSError as error:
            raise CompareError(f"{command[0]}: {error.strerror}; run ./scripts/quickstart.sh --to build") from None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, log):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
    if process.returncode != 0:
        end = "\n".join(texts[1].strip().splitlines()[-5:])
        raise CompareError(f"{' '.join(command)}\n{end}\nended with code {process.returncode}")
    # Linux counts in KiB, Darwin in bytes.
    return texts[0], texts[1], usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Model:
    """One of the two files: how to run it and what was measured."""

    def __init__(self, label: str, path: Path, flags: list[str], args: argparse.Namespace) -> None:
        self.label, self.path, self.flags, self.args = label, path, flags, args
        self.commands: list[list[str]] = []
        self.speeds: dict[str, list[float]] = {"prompt": [], "generation": []}
        self.result: dict = {"file": str(path), "flags": flags}

    def command(self, program: str, *arguments: object) -> list[str]:
        line = [str(self.args.bin_dir / program), "-m", str(self.path), *self.flags, "-t", str(self.args.threads)]
        line += [str(a) for a in arguments]
        if line not in self.commands:
            self.commands.append(line)
        return line

    def measure_bytes(self) -> None:
        ffn = [t.n_bytes for t in read_tensors(self.path) if FFN.match(t.name) and not t.name.endswith(NOT_WEIGHTS)]
        self.result.update(ffn_bytes=sum(ffn), file_bytes=self.path.stat().st_size)

    def generate(self) -> None:
        text, _, peak = run(
            self.command(
                "llama-completion", "-no-cnv", "--temp", 0, "-c", 512, "-n", self.args.tokens,
                "--no-display-prompt", "-p", self.args.prompt,
            )
        )  # fmt: skip
        self.result.update(generated=text.strip(), peak_memory_bytes=peak)

    def measure_perplexity(self) -> None:
        out, log, _ = run(
            self.command("llama-perplexity", "-f", self.args.text, "-c", 512, "--chunks", self.args.chunks)
        )
        found = re.search(r"Final estimate: PPL = (\S+) \+/- (\S+)", out + log)
        if not found:
            raise CompareError(f"llama-perplexity gave no estimate for {self.path}")
        self.result.update(perplexity=float(found[1]), perplexity_error=float(found[2]))

    def bench(self) -> None:
        """One round; appends to `speeds`."""
        out, _, _ = run(
            self.command(
                "llama-bench", "-p", self.args.prompt_tokens, "-n", self.args.generation_tokens, "-r", 1, "-o", "json"
            )
        )
        for entry in json.loads(out):
            self.speeds["generation" if entry["n_gen"] else "prompt"].append(entry["avg_ts"])

    def finish_bench(self) -> None:
        for name, values in self.speeds.items():
            self.result[f"{name}_tokens_per_s"] = statistics.median(values)
            self.result[f"{name}_tokens_per_s_rounds"] = values


def measure(models: list[Model], args: argparse.Namespace) -> None:
    def note(text: str) -> None:
        print(f"   {text}", file=sys.stderr, flush=True)

    for model in models:
        model.measure_bytes()
    for model in models:
        note(f"{model.label}: greedy generation, peak memory")
        model.generate()
    for model in models:
        note(f"{model.label}: perplexity, {args.chunks} chunks of 512 tokens")
        model.measure_perplexity()
    for number in range(args.rounds):
        note(f"both: speed, round {number + 1} of {args.rounds}")
        for model in models:
            model.bench()
    for model in models:
        model.finish_bench()


def table(models: list[Model], args: argparse.Namespace) -> str:
    results = [m.result for m in models]
    rows = [["", *(m.label for m in models), f"{models[1].label} / {models[0].label}"]]

    def row(name: str, key: str, form: str, factor: float = 1.0) -> None:
        base, coded = (r[key] for r in results)
        rows.append([name, *(format(r[key] * factor, form) for r in results), f"{coded / base:.3f}" if base else "-"])

    row("FFN weights, bytes", "ffn_bytes", ",.0f")
    row("file, bytes", "file_bytes", ",.0f")
    row("peak memory, MiB", "peak_memory_bytes", ".1f", 1 / MIB)
    row(f"perplexity, {args.chunks} x 512 tokens", "perplexity", ",.2f")
    rows.append(["  its standard error", *(f"{r['perplexity_error']:,.2f}" for r in results), ""])
    row(f"prompt ({args.prompt_tokens}), tokens/s", "prompt_tokens_per_s", ".1f")
    row(f"generation ({args.generation_tokens}), tokens/s", "generation_tokens_per_s", ".1f")
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    lines = [r[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(r[1:], widths[1:])) for r in rows]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def generations(models: list[Model], args: argparse.Namespace) -> str:
    """What each model writes after the prompt, taking the likeliest token each time."""
    lines = [f"greedy, {args.tokens} tokens after {args.prompt!r}:"]
    for model in models:
        # A ruined model may write anything, control characters too.
        text = " ".join("".join(c if c.isprintable() else " " for c in model.result["generated"]).split())
        lines += textwrap.wrap(f"{model.label}: {text}", 96, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines)


def write_json(path: Path, value: object) -> None:
    """The file appears under its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def record(models: list[Model]) -> dict:
    return {"version": 1, "models": {m.label: {**m.result, "commands": m.commands} for m in models}}


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the dense GGUF")
    parser.add_argument("--coded", type=Path, required=True, help="the GGUF with coded FFN weights")
    parser.add_argument("--text", type=Path, required=True, help="text for the perplexity")
    parser.add_argument("--flag", default="--statecells", help="what makes a program use the codes (default %(default)s)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--chunks", type=positive, default=32, help="of 512 tokens (default %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="of the speed measurement (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=positive, default=256, help="for the speed (default %(default)s)")
    parser.add_argument("--generation-tokens", type=positive, default=64, help="for the speed (default %(default)s)")
    parser.add_argument("--prompt", default="The capital of France is", help="for the greedy text (default: %(default)s)")
    parser.add_argument("--tokens", type=positive, default=32, help="of greedy text (default %(default)s)")
    parser.add_argument("--bin-dir", type=Path, default=ROOT / "bin", help="where the llama programs are (default: bin)")
    parser.add_argument("--json", type=Path, help="also write figures and commands to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    models = [Model("base", args.base, [], args), Model("coded", args.coded, [args.flag], args)]
    try:
        measure(models, args)
        print(table(models, args))
        print(generations(models, args))
        if args.json:
            write_json(args.json, record(models))
    except (CompareError, GgufError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
