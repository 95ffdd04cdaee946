#!/usr/bin/env python3
"""A llama-server under load: does it crash, does its memory grow, does it answer alike, how fast is it?

Many clients ask at random: whole answers, streamed ones, streamed ones that they leave half-way, and prompts
longer than the context. Memory is read once a second; its growth counts from the end of the warm-up, a fifth of
the time, and the server keeps no finished prompts (--cache-ram 0). Before that, greedy answers with one slot and
with all of them are compared, for every model by itself: llama.cpp's own batches may round differently. With
several models, they take turns.

    scripts/server_load.py --model coded.gguf --model q5_k_m.gguf --minutes 10 --json load.json

Models that need a flag for their codes get --statecells, which does nothing to others. Python's standard library only.
"""

import argparse
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from programs import ROOT, ProgramError, positive, write_json

READY = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
WORDS = "the sea was calm and nobody on the old ship knew how far the harbour lay behind those hills".split()
CONTEXT = 512
# llama-server keeps the prompts that it has read, by default up to 8 GiB of them: that is no leak, but would hide one.
NO_PROMPT_CACHE = ["--cache-ram", 0]
# What a client does, and how often.
KINDS = {"whole": 55, "streamed": 25, "cancelled": 15, "too long": 5}
TIMEOUT = 300


class Server:
    """A running llama-server, to be used with `with`."""

    def __init__(self, args: argparse.Namespace, model: Path, slots: int) -> None:
        line = [args.bin_dir / "llama-server", "-m", model, "--statecells", "-t", args.threads, "-np", slots]
        line += ["-c", slots * CONTEXT, "--host", "127.0.0.1", "--port", 0, "--no-ui", *NO_PROMPT_CACHE]
        self.line = [str(a) for a in line]
        self.port = 0

    def __enter__(self) -> "Server":
        try:
            self.process = subprocess.Popen(self.line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        except OSError as error:
            raise ProgramError(f"{self.line[0]}: {error.strerror}; run ./scripts/quickstart.sh --to build") from None
        last = ""
        for raw in self.process.stderr:
            last = raw.decode("utf-8", "replace")
            if found := READY.search(last):
                self.port = int(found[1])
                break
        else:
            raise ProgramError(f"{' '.join(self.line)}\n{last.strip()}\nended before it was ready")
        threading.Thread(target=self._drain, daemon=True).start()
        return self

    def _drain(self) -> None:
        for _ in self.process.stderr:
            pass

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def resident(self) -> int:
        """Bytes in memory that are its own, mapped files left out; 0 if it has ended."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        return int(found[1]) * 1024 if found else 0

    def ask(self, prompt: str, tokens: int, stream: bool = False) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "stream": stream, "cache_prompt": False}
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.connection = connection
        return response

    def answer(self, prompt: str, tokens: int) -> str:
        response = self.ask(prompt, tokens)
        body = response.read()
        if response.status != 200:
            raise ProgramError(f"the server refused a plain request: {response.status} {body[:200]!r}")
        return json.loads(body)["content"]


@dataclass
class Load:
    """What the clients saw."""

    counts: Counter = field(default_factory=Counter)
    tokens: int = 0
    faults: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, tokens: int, fault: str | None) -> None:
        with self.lock:
            self.counts[kind] += 1
            self.tokens += tokens
            if fault:
                self.faults.append(f"{kind}: {fault}")


def prompt(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def one_request(server: Server, kind: str, rng: random.Random, tokens: int) -> tuple[int, str | None]:
    """Tokens received, and what was wrong."""
    if kind == "too long":
        response = server.ask(prompt(rng, 3 * CONTEXT), tokens)
        response.read()
        return 0, None if response.status == 400 else f"status {response.status}, 400 expected"
    text = prompt(rng, rng.randint(8, 64))
    if kind == "whole":
        response = server.ask(text, tokens)
        body = json.loads(response.read())
        n = body.get("tokens_predicted", 0)
        return n, None if response.status == 200 and n > 0 else f"status {response.status}, {n} tokens"
    response = server.ask(text, tokens, stream=True)
    n, leave_after = 0, rng.randint(1, 4) if kind == "cancelled" else None
    for line in response:
        n += line.startswith(b"data: ")
        if leave_after is not None and n >= leave_after:
            response.connection.close()
            return n, None
    return n, None if response.status == 200 and n > 0 else f"status {response.status}, {n} pieces"


def client(server: Server, load: Load, seed: int, until: float, tokens: int) -> None:
    rng = random.Random(seed)
    kinds, weights = list(KINDS), list(KINDS.values())
    while time.monotonic() < until and server.process.poll() is None:
        kind = rng.choices(kinds, weights)[0]
        try:
            load.note(kind, *one_request(server, kind, rng, tokens))
        except (OSError, http.client.HTTPException, ValueError) as error:
            load.note(kind, 0, repr(error))


def under_load(args: argparse.Namespace, model: Path) -> dict:
    load, memory = Load(), []
    with Server(args, model, args.slots) as server:
        start = time.monotonic()
        until = start + 60 * args.minutes
        threads = [
            threading.Thread(target=client, args=(server, load, args.seed + i, until, args.tokens), daemon=True)
            for i in range(args.clients)
        ]
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads):
            memory.append((time.monotonic() - start, server.resident()))
            time.sleep(1)
        seconds = time.monotonic() - start
        crashed = server.process.poll() is not None
        healthy = not crashed and server.answer("Once upon a time", 4) != ""
    warm = [b for t, b in memory if t >= 0.2 * 60 * args.minutes] or [0]
    return {
        "requests": dict(load.counts), "faults": load.faults[:20], "n_faults": len(load.faults), "crashed": crashed,
        "answers_afterwards": healthy, "seconds": seconds, "tokens_per_s": load.tokens / seconds,
        "resident_after_warm_up": warm[0], "resident_at_end": warm[-1], "resident_peak": max(warm),
    }  # fmt: skip


def same_answers(args: argparse.Namespace, model: Path) -> dict:
    """How many greedy answers are the same with one slot and with all slots at work."""
    rng = random.Random(args.seed)
    prompts = [prompt(rng, 12) for _ in range(3 * args.slots)]
    with Server(args, model, 1) as server:
        alone = [server.answer(p, args.tokens) for p in prompts]
    together: list[str | None] = [None] * len(prompts)
    with Server(args, model, args.slots) as server:

        def fill(first: int) -> None:
            for i in range(first, len(prompts), args.slots):
                together[i] = server.answer(prompts[i], args.tokens)

        threads = [threading.Thread(target=fill, args=(i,)) for i in range(args.slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return {"prompts": len(prompts), "same": sum(a == b for a, b in zip(alone, together))}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, action="append", help="may be repeated")
    parser.add_argument("--minutes", type=float, default=10, help="of load for each model (default %(default)s)")
    parser.add_argument("--slots", type=positive, default=8, help="of the server (default %(default)s)")
    parser.add_argument("--clients", type=positive, default=64, help="at once (default %(default)s)")
    parser.add_argument("--tokens", type=positive, default=24, help="per answer (default %(default)s)")
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="of the server (default: one per core)")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and kinds (default %(default)s)")
    parser.add_argument("--bin-dir", type=Path, default=ROOT / "bin", help="where the programs are (default: bin)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    args = parse(arguments)
    results = {}
    try:
        for model in args.model:
            print(f"   {model}: answers with 1 and {args.slots} slots", file=sys.stderr, flush=True)
            results[str(model)] = {"answers": same_answers(args, model)}
            print(f"   {model}: {args.minutes:g} minutes of {args.clients} clients", file=sys.stderr, flush=True)
            results[str(model)] |= under_load(args, model)
    except (ProgramError, OSError, http.client.HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(results, indent=2))
    if args.json:
        write_json(args.json, results)
    return 3 if any(r["crashed"] or r["n_faults"] or not r["answers_afterwards"] for r in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
