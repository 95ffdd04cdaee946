#!/usr/bin/env python3
"""Exact answers of a tiny transformer, by llama-server on the exported file.

usage: tiny_accuracy.py [--server FILE] [--flags FLAGS] MODEL.gguf EXAMPLES.jsonl [JSON]

Asks every prompt alone, greedily, up to the newline, and counts the answers that are right to the letter.
Prints a table; writes the counts to JSON. Ends with 3 if the aims are missed: 99 % of copy and brackets,
95 % of sums. FLAGS go to llama-server (--flags=--seeddelta).
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

AIMS = {"copy": 0.99, "sum": 0.95, "brackets": 0.99}
START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url + "/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    sys.exit(f"tiny_accuracy.py: error: llama-server does not start: {' '.join(last)}")


def ask(url: str, prompt: str) -> str:
    body = {"prompt": prompt, "n_predict": 16, "temperature": 0, "stop": ["\n"], "cache_prompt": False}
    return post(url + "/completion", body)["content"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parent.parent / "bin/llama-server"
    parser.add_argument("--server", type=Path, default=default, help="llama-server (default: %(default)s)")
    parser.add_argument("--flags", default="", help="more flags for llama-server")
    parser.add_argument("model", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("json", type=Path, nargs="?")
    args = parser.parse_args()
    examples = [json.loads(line) for line in args.examples.read_text(encoding="utf-8").splitlines()]
    asked, exact = Counter(), Counter()
    port = free_port()
    command = [args.server, "-m", args.model, "--host", "127.0.0.1", "--port", port, "-c", 64, "-np", 1, "-t", 2]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen([*map(str, command), *args.flags.split()], stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, log)
            for e in examples:
                asked[e["task"]] += 1
                exact[e["task"]] += ask(url, e["prompt"]) == e["answer"]
        finally:
            process.terminate()
            process.wait()
    rates = {task: exact[task] / n for task, n in asked.items()}
    for task, n in asked.items():
        print(f"{task}: {exact[task]} of {n} exact, {100 * rates[task]:.2f} %")
    if args.json:
        counts = {task: {"asked": n, "exact": exact[task]} for task, n in asked.items()}
        args.json.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return 0 if all(rates[task] >= AIMS[task] for task in rates) else 3


if __name__ == "__main__":
    sys.exit(main())
