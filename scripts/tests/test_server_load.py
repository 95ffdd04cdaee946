"""The load test, against a stand-in for the server."""

import json
import sys

import pytest
import server_load

# Answers from the prompt's length; fails on what FAIL names.
SERVER = """#!{python}
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

fail = os.environ.get("FAIL", "")
slots = int(sys.argv[sys.argv.index("-np") + 1])

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = len(body["prompt"].split())
        status = 400 if words > 512 and fail != "long prompts" else 200
        if fail == "crash" and body["stream"]:
            os._exit(1)
        text = str(words) + ("x" * slots if fail == "answers" else "")
        self.send_response(status)
        self.end_headers()
        if not body["stream"]:
            self.wfile.write(json.dumps({{"content": text, "tokens_predicted": 3}}).encode())
            return
        for _ in range(9):
            self.wfile.write(b'data: {{"content": "x"}}\\n\\n')

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("starting", file=sys.stderr)
print(f"listening on http://127.0.0.1:{{server.server_port}}", file=sys.stderr, flush=True)
server.serve_forever()
"""


@pytest.fixture
def arguments(tmp_path):
    program = tmp_path / "llama-server"
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(0o755)
    line = ["--model", "m.gguf", "--bin-dir", tmp_path, "--minutes", 0.03, "--clients", 4, "--slots", 2]
    return [str(a) for a in [*line, "--json", tmp_path / "load.json"]]


def figures(tmp_path):
    return json.loads((tmp_path / "load.json").read_text())["m.gguf"]


def test_a_sound_server_passes(arguments, tmp_path):
    assert server_load.main(arguments) == 0
    found = figures(tmp_path)
    assert found["answers"] == {"prompts": 6, "same": 6}
    assert set(found["requests"]) == set(server_load.KINDS)
    assert found["n_faults"] == 0 and found["answers_afterwards"] and not found["crashed"]
    assert found["resident_peak"] >= found["resident_at_end"] > 0 and found["tokens_per_s"] > 0


def test_answers_that_depend_on_the_slots_are_counted(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "answers")
    assert server_load.main(arguments) == 0
    assert figures(tmp_path)["answers"] == {"prompts": 6, "same": 0}


@pytest.mark.parametrize("fault", ["long prompts", "crash"])
def test_faults_are_found(arguments, tmp_path, monkeypatch, fault):
    monkeypatch.setenv("FAIL", fault)
    assert server_load.main(arguments) == 3
    found = figures(tmp_path)
    assert found["n_faults"] > 0
    assert found["crashed"] == (fault == "crash")


def test_a_server_that_does_not_start_is_one_line(arguments, tmp_path, capsys):
    (tmp_path / "llama-server").write_text("#!/bin/sh\necho no such model >&2\nexit 1\n")
    assert server_load.main(arguments) == 1
    assert "no such model" in capsys.readouterr().err
