"""Running the project's programs from scripts, and what their command lines share."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The base's logits, in the folder of kept outcomes.
BASE_LOGITS = "base.kld"


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


def divergence_run(args: argparse.Namespace, text: Path, base_logits: Path, model: Path, *flags: object) -> str:
    """What llama-perplexity says of `model`. Without --kl-divergence among `flags` it writes the base's logits."""
    line = [args.bin_dir / "llama-perplexity", "-m", model, "-f", text, "-c", 512, "--chunks", args.chunks]
    return run([str(a) for a in [*line, "-t", args.threads, "--kl-divergence-base", base_logits, *flags]])


def coded_run(args: argparse.Namespace, folder: Path, base_logits: Path, *flags: object) -> tuple[dict, str]:
    """Codes the model with `flags` of statecells-build: its report, and what llama-perplexity says of the result."""
    coded, report = folder / "coded.gguf", folder / "report.json"
    line = [args.bin_dir / "statecells-build", "-i", args.model, "-o", coded, "--force", "-t", args.threads]
    run([str(a) for a in [*line, "--report-json", report, *flags]])
    log = divergence_run(args, args.text, base_logits, coded, "--statecells", "--kl-divergence")
    return json.loads(report.read_text()), log


def mean_divergence(log: str) -> float:
    """The mean Kullback-Leibler divergence from the base that llama-perplexity gave."""
    found = re.search(r"Mean\s+KLD:\s*(\S+)", log)
    if not found:
        raise ProgramError("llama-perplexity gave no divergence")
    return float(found[1])


def model_flags(parser: argparse.ArgumentParser, *, chunks: int) -> None:
    """The flags of scripts that code a model and run it on a text."""
    parser.add_argument("--model", type=Path, required=True, help="the dense GGUF")
    parser.add_argument("--text", type=Path, required=True, help="text to run on")
    parser.add_argument("--chunks", type=positive, default=chunks, help="of 512 tokens (default %(default)s)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--bin-dir", type=Path, default=ROOT / "bin", help="where the programs are (default: bin)")


def calibrated_model_flags(parser: argparse.ArgumentParser, *, chunks: int) -> None:
    """The same for a model with a calibration."""
    model_flags(parser, chunks=chunks)
    parser.add_argument("--calib", type=Path, required=True, help="its calibration, by statecells-calib")


def kept_outcomes(
    args: argparse.Namespace, settings: dict[str, list], measure: Callable, kind: type, texts: dict[Path, Path]
) -> dict:
    """What `measure` finds for the flags of every setting, as `kind`; what --folder knows already is used again. `texts`:
    those that are run on, and where the base's logits on each are or will be."""
    args.folder.mkdir(parents=True, exist_ok=True)
    kept_path = args.folder / "outcomes.json"
    kept = json.loads(kept_path.read_text()) if kept_path.exists() else {}
    for text, base_logits in texts.items():
        if not base_logits.exists():
            divergence_run(args, text, base_logits, args.model)
    found = {}
    for name, flags in settings.items():
        key = " ".join(str(a) for a in [args.sections, args.layers, args.chunks, *texts, args.model, *flags])
        if key not in kept:
            kept[key] = vars(measure(args, flags))
            write_json(kept_path, kept)
        found[name] = kind(**kept[key])
        print(f"   {name}: {found[name]}", file=sys.stderr, flush=True)
    return found


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
