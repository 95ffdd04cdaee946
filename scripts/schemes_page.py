#!/usr/bin/env python3
"""Writes the page that compares schemes, from the reports of statecells-eval, to standard output.

usage: schemes_page.py NAME|FLAGS... -- REPORT.json...

Python's standard library only; scripts/make-results.sh calls it.
"""

import json
import sys
from pathlib import Path

HEAD = """# Schemes side by side

Made by `./scripts/make-results.sh`, not by hand. SmolLM2-135M-Instruct (Q4_1) with its FFN coded by every scheme of
`statecells-build`, good settings and ruinous ones, evaluated by `statecells-eval`. Rules are those of its verdict: FFN bytes
at least 30 % under Q5_K_M's types, perplexity at most 2 % above the base with Q5_K_M's FFN.
"""

PICTURE = """
![KL divergence from the base over bytes of the FFN](../pictures/divergence.svg)"""

REASONS = """
## Why some are ruined

- *Sections* code blocks of 8 inputs, each with one atom of every section: S/2 bits per weight buy an error near that of the
  best known codes. Fitted to activations (`--calib`) the errors land where inputs are small.
- *Global dictionaries* (`sign...`) write a whole row as a few atoms of the input's full length. Weights are close to random
  in such directions, so that few atoms explain half of them at best (see the gaps), already two layers of 30 cost more than
  all layers coded in sections. They stay as the reference and as a smoke test: M = 256, k = 16 must look bad here.
"""


def number(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


def estimate(value: dict | None, digits: int) -> str:
    if value is None:
        return "-"
    error = value.get("error")
    return f"{value['value']:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def figures(measured: dict | None) -> dict:
    return (measured or {}).get("value") or {}


def row(label: str, file: dict, report: dict) -> str:
    sizes, divergence = figures(file["sizes"]), figures(file["divergence"])
    perplexity = divergence.get("perplexity") or figures(file["perplexity"]).get("estimate")
    reference = next(f for f in report["files"] if f["key"] == "ffn-Q5_K_M")
    against = sizes["ffn_bytes"] / figures(reference["sizes"])["ffn_bytes"] - 1
    kl, top = divergence.get("kl_mean"), divergence.get("same_top")
    cells = [
        label,
        number(sizes["ffn_bits_per_weight"], ".2f"),
        number(against, "+.1f", 100) + " %",
        estimate(perplexity, 2),
        estimate(kl, 4),
        number(top and top["value"], ".1f", 100) + " %" if top else "-",
    ]
    return "| " + " | ".join(cells) + " |"


def coded_row(name: str, report: dict) -> str:
    file = next(f for f in report["files"] if f["key"] == "statecells")
    gaps = [t["gap"] for t in report["tensors"] if t["scheme"]]
    rules = {r["id"]: r for r in report["verdict"]["rules"]}
    quality, qa = rules["perplexity_2"], figures(report["qa"])
    gap = "-" if quality["value"] is None else f"{100 * quality['value']:+.1f} % +- {100 * (quality['error'] or 0):.1f}"
    prompts = f"{qa['n_statecells']} of {qa['n_asked']} (base {qa['n_base']})" if qa else "-"
    words = {True: "PASS", False: "FAIL", None: "-"}
    verdicts = f"{words[rules['ffn_memory_30']['passed']]}, {words[quality['passed']]}"
    mean_gap = f"{sum(gaps) / len(gaps):.3f}" if gaps else "-"
    return row(f"`{name}`", file, report) + f" {len(gaps)} | {mean_gap} | {gap} | {prompts} | {verdicts} |"


def page(schemes: list[str], reports: list[dict]) -> str:
    first = reports[0]
    machine, settings = first["machine"], first["settings"]
    busy = "" if (machine["load_at_start"] or 0) <= 1 else ", busy with other work: figures of quality do not depend on it"
    lines = [
        HEAD,
        f"{first['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['system']}{busy}. {first['tool']} "
        f"{first['tool_version']}, {first['llama_cpp']}. Text: `{Path(first['command'][first['command'].index('--text') + 1]).name}`, none of it calibrated on, "
        f"{settings['chunks']} chunks of {settings['n_ctx']} tokens.",
        "",
        "| built as | bits per weight, all FFN | FFN bytes against Q5_K_M | perplexity | KL divergence from the base | same top token "
        "| matrices coded | mean gap | perplexity over Q5_K_M's FFN | prompts right | memory, quality |",
        "|" + "---|" * 11,
    ]
    names = [s.split("|")[0] for s in schemes]
    lines += [coded_row(name, report) for name, report in zip(names, reports)]
    lines += ["", "The base, and its FFN requantized by llama-quantize:", ""]
    lines += ["| file | bits per weight, all FFN | FFN bytes against Q5_K_M | perplexity | KL divergence from the base | same top token |"]
    lines += ["|" + "---|" * 6]
    lines += [row(f["label"], f, first) for f in first["files"] if f["key"] != "statecells"]
    lines += ["", *(f"- {w}" for w in first["warnings"]), PICTURE, REASONS, "## Commands", ""]
    for scheme in schemes:
        name, flags = scheme.split("|")
        lines.append(f"    bin/statecells-build -i models/SmolLM2-135M-Instruct.Q4_1.gguf -o results/schemes/{name}.gguf {flags}")
    lines += ["", "and for each, here for the first:", "", "    " + relative(first["command"]), ""]
    return "\n".join(lines)


def relative(command: list[str]) -> str:
    root = str(Path(__file__).resolve().parent.parent) + "/"
    return " ".join(c.replace(root, "") for c in command)


def main(arguments: list[str]) -> int:
    if "--" not in arguments:
        print(__doc__, file=sys.stderr)
        return 2
    split = arguments.index("--")
    reports = [json.loads(Path(p).read_text()) for p in arguments[split + 1 :]]
    print(page(arguments[:split], reports))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
