"""The ten edge cases of the specification, by their numbers: what the user sees, what to do, and the exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models
from tests.conftest import make_key
from tests.hub import Trouble, running_hub
from tests.testbed.cli import Rbee, Result
from tests.testbed.node import ContainerNode, wait_until

pytestmark = [pytest.mark.container, pytest.mark.model]

STORY = "Write a very long story about a bee who travels around the world."
INFER = ("infer", "--node", "gpu1", "--ctx", "512", "--max-tokens")


@pytest.fixture(scope="module")
def node(shared_rbee: Rbee, shared_ready_node: ContainerNode) -> Iterator[ContainerNode]:
    """A node that is set up, known to the shared keeper; nothing of ours runs on it when the module ends."""
    use(shared_rbee, shared_ready_node)
    yield shared_ready_node
    shared_rbee("hive", "stop", "gpu1", "--now")
    shared_ready_node.assert_quiet()


def test_case_1_an_unreachable_node(rbee: Rbee, free_port: int) -> None:
    rbee.inventory.write_text(f'[nodes.gpu1]\nhost = "127.0.0.1"\nport = {free_port}\n')
    result = rbee(*INFER, "4", "Hello", status=3)
    assert re.findall(r"try (\d) of 3 failed: Connection refused", result.stderr) == ["1", "2", "3"]
    told(result, "gpu1 cannot be reached", hint="check host, port and network")


def test_case_2_a_download_that_breaks(shared_rbee: Rbee, node: ContainerNode, tmp_path: Path) -> None:
    """tests/e2e/test_hub.py has the same where the node downloads by itself, with the real model."""
    file = tiny_models.write(tmp_path / "tiny.gguf", "llama").read_bytes() + bytes(30_000_000)
    with running_hub() as hub:
        hub.add("bees/Broken-GGUF", "broken-Q4_1.gguf", file)
        env = {"HF_ENDPOINT": hub.url}
        words = (*INFER, "4", "--model", "hf:bees/Broken-GGUF:Q4_1", "Hello")
        hub.trouble = Trouble(corrupt=True)
        result = shared_rbee(*words, status=6, env=env)
        told(result, "wrong checksum", hint="the file there has changed or is damaged")
        hub.trouble = Trouble(cut_after=20_000_000, times=1)
        seen_before = len(hub.content_requests())
        result = shared_rbee(*words, env=env)
        headers = [seen.headers for seen in hub.content_requests()[seen_before:]]
    assert re.search(r"try 1 of 6 failed", result.stderr)
    ranges = [each.get("Range", each.get("range", "")) for each in headers]
    assert any(re.fullmatch(r"bytes=[1-9]\d*-", value) for value in ranges), ranges


def test_case_3_too_little_memory(rbee: Rbee, ready_node: Callable[..., ContainerNode]) -> None:
    small = ready_node(memory="300m")
    use(rbee, small)
    result = rbee("infer", "--node", "gpu1", "--ctx", "8192", "Hello", status=7)
    told(result, "RAM", hint="smaller context")
    figures = {name: int(number) for name, number in re.findall(r"(needed_mb|available_mb): (\d+)", result.stderr)}
    assert figures["needed_mb"] > figures["available_mb"]
    assert small.pids("worker") == []
    rbee("hive", "stop", "gpu1")
    small.assert_quiet()


def test_case_4_a_worker_that_dies_in_mid_answer(shared_rbee: Rbee, node: ContainerNode) -> None:
    with shared_rbee.start(*INFER, "300", "--seed", "1", STORY) as running:
        running.wait_for_pieces(3)
        (pid,) = node.pids("worker")
        node.exec(f"kill -KILL {pid}")
        result = running.finish()
    assert result.status == 8, result.stderr
    told(result, r"the worker died after \d+ of 300 tokens", hint="the next `rbee infer` starts a new worker")
    saved = re.search(r"saved: (\S+)", result.stderr)
    assert saved
    assert Path(saved[1]).read_text().strip() == result.stdout.strip()
    assert re.search(r"worker \w+ failed: .*ended unexpectedly", shared_rbee("logs", "gpu1").stdout)
    assert shared_rbee(*INFER, "4", "Hello").stdout.strip()
    assert pid not in node.pids("worker")


@pytest.mark.parametrize("prefill", [False, True], ids=["generating", "in prefill"])
def test_case_5_ctrl_c(shared_rbee: Rbee, node: ContainerNode, prefill: bool) -> None:
    prompt = "bee " * 7000 if prefill else STORY
    words = ("infer", "--node", "gpu1", "--ctx", "8192", "--max-tokens", "1000", "--seed", "1", prompt)
    with shared_rbee.start(*words) as running:
        if prefill:
            wait_until(lambda: free_slots(shared_rbee) == [3], 60, lambda: f"slots: {free_slots(shared_rbee)}")
        else:
            running.wait_for_pieces(3)
        running.interrupt()
        result = running.finish()
    assert result.status == 130, result.stderr
    assert "canceled" in result.stderr
    wait_until(lambda: free_slots(shared_rbee) == [4], 30, lambda: f"slots: {free_slots(shared_rbee)}")


def test_case_6_a_busy_worker(shared_rbee: Rbee, node: ContainerNode) -> None:
    words = ("infer", "--node", "gpu1", "--ctx", "512", "--slots", "1", "--max-tokens", "4", "Hello")
    asked = shared_rbee("--json", *words).lines()[-1]["worker"]
    worker = shared_rbee("workers", "show", asked, "--json").json()
    script = "/tmp/crowd.py"
    node.exec(f"cat > {script} <<'END'\n{CROWD}\nEND\n(setsid python3 {script} {worker['socket']} &) >/dev/null 2>&1")
    wait_until(lambda: "full" in node.try_exec("cat /tmp/crowd")[1], 60, lambda: "the queue never became full")
    try:
        result = shared_rbee(*words, status=9)
    finally:
        node.exec("kill -KILL $(cat /tmp/crowd.pid)")
    delays = re.findall(r"try (\d) of 4 failed: .*; next in (\d) s", result.stderr)
    assert delays == [("1", "1"), ("2", "2"), ("3", "4")]
    told(result, "all slots of the worker are busy", hint="try again in a while")
    stop_workers(shared_rbee)


def test_case_7_a_load_that_hangs(shared_rbee: Rbee, node: ContainerNode) -> None:
    start_hive(shared_rbee, node, "--stall", "2")
    with shared_rbee.start(*INFER, "4", "Hello") as running:
        wait_until(lambda: node.pids("worker"), 60, lambda: running.text("stderr"))
        node.exec(f"kill -STOP {node.pids('worker')[0]}")
        result = running.finish()
    assert result.status == 8, result.stderr
    told(result, "made no progress for 2 s", hint="look at the worker's log")
    assert re.search(r"progress_percent: \d+", result.stderr)
    assert re.search(r"log: \S+/worker-\w+\.log", result.stderr)
    assert node.pids("worker") == []
    shared_rbee("hive", "stop", "gpu1", "--now")  # it has too little patience for a busy machine


def test_case_8_an_older_hive_is_replaced(shared_rbee: Rbee, node: ContainerNode) -> None:
    older = start_hive(shared_rbee, node, payload="0" * 64)
    assert shared_rbee(*INFER, "4", "Hello").stdout.strip()
    (status,) = shared_rbee("hive", "status", "gpu1", "--json").json()
    assert status["hive"]["instance"] != older["instance"]
    assert len(node.pids("hive")) == 1


def test_case_8_a_newer_hive_is_refused(shared_rbee: Rbee, node: ContainerNode) -> None:
    (status,) = shared_rbee("hive", "status", "gpu1", "--json").json()
    shared_rbee("hive", "stop", "gpu1", "--now")
    newer = json.dumps({**status["hive"], "protocol": 99, "version": "99.0.0"})
    socket = status["hive"]["socket"]
    script = "/tmp/newer.py"
    node.exec(f"cat > {script} <<'END'\n{NEWER_HIVE}\nEND", user="bee")
    node.exec(f"(setsid python3 {script} {socket} '{newer}' &) >/dev/null 2>&1", user="bee")
    wait_until(lambda: socket in node.sockets(), 60, lambda: "no socket")
    try:
        result = shared_rbee(*INFER, "4", "Hello", status=5)
    finally:
        node.exec(f"kill -KILL $(cat /tmp/newer.pid); rm {socket}")
    told(result, r"speaks protocol 99 \(rbee 99\.0\.0\), this keeper \d+ \(\d", hint="upgrade rbee here")


def test_case_9_a_key_that_is_refused(rbee: Rbee, node: ContainerNode, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    rbee.inventory.write_text(node.inventory(identity_file=f'"{stranger.private}"'))
    result = rbee(*INFER, "4", "Hello", status=4)
    assert "try 2" not in result.stderr
    told(result, "bee", hint="identity_file|authorized_keys")
    assert str(stranger.private) in result.stderr


def test_case_10_an_idle_worker_ends(shared_rbee: Rbee, node: ContainerNode) -> None:
    words = (*INFER, "2", "--keep-alive", "1s", "--json", "Hello")
    first = shared_rbee(*words).lines()[-1]["worker"]
    wait_until(lambda: not node.pids("worker"), 60, lambda: f"still there: {node.processes()}")
    wait_until(lambda: shared_rbee("workers", "list", "--json").json() == [], 60, lambda: "the hive remembers it")
    assert [path for path in node.sockets() if "worker-" in path] == []
    assert shared_rbee(*words).lines()[-1]["worker"] != first


# --- helpers ------------------------------------------------------------------------------------------------------

#: Keeps a worker's slot and its whole queue taken: argv is its socket. Says "full" in /tmp/crowd once somebody waits.
CROWD = """
import http.client, json, os, socket, sys, threading, time
open("/tmp/crowd.pid", "w").write(str(os.getpid()))
def ask():
    while True:
        connection = http.client.HTTPConnection("rbee")
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(sys.argv[1])
            body = {"request_id": os.urandom(16).hex(), "prompt": "Once upon a time", "max_tokens": 500}
            connection.request("POST", "/v1/inference", json.dumps(body))
            answer = connection.getresponse()
        except OSError:
            continue
        if answer.status == 200:
            answer.read()
        else:
            open("/tmp/crowd", "w").write("full")
            time.sleep(0.05)
for _ in range(70):
    threading.Thread(target=ask).start()
"""

#: Answers everything that is asked at a socket with one document: argv is the socket and the document.
NEWER_HIVE = """
import http.server, os, socketserver, sys
open("/tmp/newer.pid", "w").write(str(os.getpid()))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = sys.argv[2].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return ""
socketserver.ThreadingUnixStreamServer(sys.argv[1], Answer).serve_forever()
"""


def use(rbee: Rbee, node: ContainerNode) -> None:
    """Have a keeper know the node, where each case's worker makes room for the next one's."""
    rbee.inventory.write_text(node.inventory(max_workers="1"))


def told(result: Result, what: str, *, hint: str) -> None:
    """The error is one line, then its details, then a hint. what, hint: regular expressions."""
    lines = result.stderr.splitlines()
    (error,) = [line for line in lines if line.startswith("error: ")]
    assert re.search(what, error), result.stderr
    assert lines[-1].startswith("hint: "), result.stderr
    assert re.search(hint, lines[-1]), result.stderr


def start_hive(rbee: Rbee, node: ContainerNode, *options: str, payload: str | None = None) -> Any:
    """A hive in place of the node's, with `options`, that says it is of `payload`: its HiveInfo."""
    rbee(*INFER, "1", "Hello")
    (status,) = rbee("hive", "status", "gpu1", "--json").json()
    rbee("hive", "stop", "gpu1", "--now")
    hive = status["hive"]
    home, run_dir = hive["home"], hive["socket"].rpartition("/")[0]
    python = node.exec(f"ls -d {home}/runtimes/*/bin/python").split()[0]
    command = f"{python} -I {home}/payloads/{hive['payload']}.zip hive --home {home} --run-dir {run_dir}"
    words = f"{command} --payload {payload or hive['payload']} --detach {' '.join(options)}"
    return json.loads(node.exec(words, user="bee"))


def free_slots(rbee: Rbee) -> list[int]:
    """Of the workers that serve; one that failed is listed for another minute."""
    workers = rbee("workers", "list", "--json").json()
    return [worker["slots_free"] for worker in workers if worker["state"] != "failed"]


def stop_workers(rbee: Rbee) -> None:
    for worker in rbee("workers", "list", "--json").json():
        rbee("workers", "stop", worker["id"], "--now")
