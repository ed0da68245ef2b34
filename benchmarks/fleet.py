"""`rbee batch` over 1, 2 and 4 workers whose model is a script, paced so that this machine has little to compute: lines
a second against as many times those of one worker. And over two containers with the real model, against a client that
shares the same lines out by hand over two `ssh -L`.

RBEE_FLEET: `scripted` or `containers`: which of the two; both.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import httpx

from benchmarks import scripted_node
from benchmarks.fleet_testbed import forwarded, served
from benchmarks.harness import Comparison
from benchmarks.loopback_fleet import loopback_nodes
from benchmarks.testbed import keeper
from tests.testbed.cli import Rbee

WORKERS = (1, 2, 4)
SLOTS, ROUNDS = 8, 3
#: Seconds of a step; tokens of an answer; lines for each worker, so that a run takes 40 s.
PACE_S, TOKENS, LINES = 0.25, 20, 64
#: Of the containers: lines in all, tokens of an answer, slots of each.
REAL_LINES, REAL_TOKENS, REAL_SLOTS = 144, 24, 4
MODEL = "smollm2:135m"


def measure() -> list[Comparison]:
    which = os.environ.get("RBEE_FLEET") or "scripted containers"
    figures = asyncio.run(_scripted()) if "scripted" in which else []
    return [*figures, *(_containers() if "containers" in which else [])]


async def _scripted() -> list[Comparison]:
    with keeper() as rbee:
        words = ["--slots", str(SLOTS), "--ctx", "2048"]
        line = f'PACE_S={PACE_S} exec "{sys.executable}" -P "{scripted_node.__file__}" "$0" "$@"'
        async with loopback_nodes(rbee, max(WORKERS), *words, python=lambda _: line) as nodes:
            rbee.inventory.write_text(_tagged(rbee.inventory.read_text(), nodes))
            speeds: dict[int, list[float]] = {count: [] for count in WORKERS}
            for _ in range(ROUNDS):
                for count in WORKERS:
                    options = ("--node", f"@first{count}", "--model", MODEL, "--slots", str(SLOTS))
                    seconds = await asyncio.to_thread(_batch, rbee, count * LINES, TOKENS, *options, "--ctx", "2048")
                    speeds[count].append(round(count * LINES / seconds, 2))
                    print(f"{count} workers: {speeds[count][-1]} lines/s", flush=True)
    one = statistics.median(speeds[1])
    return [
        Comparison(
            f"lines/s, {count} workers", round(statistics.median(speeds[count]) / (count * one), 3), 1000, "x",
            f"{count} times one", tuple(speeds[count]), tuple(round(count * each, 2) for each in speeds[1]), 0.95,
            "lines/s",
        )
        for count in WORKERS[1:]
    ]  # fmt: skip


def _tagged(inventory: str, nodes: tuple[str, ...]) -> str:
    """With a tag for the first one, the first two, and so on."""
    for number, name in enumerate(nodes):
        tags = ", ".join(f'"first{count}"' for count in WORKERS if number < count)
        head, _, rest = inventory.partition(f"[nodes.{name}]")
        tagged = rest.replace('tags = ["far"]', f'tags = ["far", {tags}]', 1)
        inventory = f"{head}[nodes.{name}]{tagged}"
    return inventory


def _batch(rbee: Rbee, lines: int, tokens: int, *options: str) -> float:
    """Seconds of a whole run, as it says itself: from its input's first line to its output's last, with connecting."""
    source, out = rbee.home / "in.jsonl", rbee.home / "out.jsonl"
    source.write_text("".join(f"{json.dumps({'prompt': _prompt(number)})}\n" for number in range(lines)))
    out.unlink(missing_ok=True)
    words = (str(source), "--out", str(out), "--max-tokens", str(tokens), "--temperature", "0", "--json")
    summary = rbee("batch", *words, *options).lines()[-1]["batch"]
    assert (summary["done"], summary["failed"]) == (lines, 0), summary
    return float(summary["seconds"])


def _prompt(number: int) -> str:
    return f"Write a story about the number {number}."


def _containers() -> list[Comparison]:
    """A run connects each time, which counts; the tunnels are there already."""
    ours, theirs = [], []
    with served(2, "--slots", str(REAL_SLOTS), "--ctx", "512") as running, ExitStack() as stack:
        sockets = [stack.enter_context(forwarded(running, name)) for name in running.nodes]
        options = ("--node", "@far", "--model", MODEL, "--slots", str(REAL_SLOTS), "--ctx", "512")
        for _ in range(ROUNDS):
            ours.append(round(REAL_LINES / _batch(running.rbee, REAL_LINES, REAL_TOKENS, *options), 3))
            theirs.append(round(REAL_LINES / asyncio.run(_by_hand(sockets)), 3))
            print(f"rbee batch {ours[-1]} lines/s, by hand {theirs[-1]}", flush=True)
    ratio = round(statistics.median(our / their for our, their in zip(ours, theirs, strict=True)), 3)
    name = f"lines/s, 2 containers, {REAL_LINES} lines of {REAL_TOKENS} tokens"
    return [
        Comparison(name, ratio, 1000, "x", "ssh -L and httpx", tuple(ours), tuple(theirs), 1.0, "lines/s"),
    ]


async def _by_hand(sockets: list[Path]) -> float:
    """Seconds for the same lines, every other one to each worker, as many at once as its slots hold."""

    async def one(client: httpx.AsyncClient, places: asyncio.Semaphore, number: int) -> None:
        body = {
            "messages": [{"role": "user", "content": _prompt(number)}], "max_tokens": REAL_TOKENS, "temperature": 0
        }  # fmt: skip
        async with places:
            answer = await client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text

    began = time.perf_counter()
    async with AsyncExitStack() as stack:
        clients = []
        for path in sockets:
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            client = httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=None)
            clients.append((await stack.enter_async_context(client), asyncio.Semaphore(REAL_SLOTS)))
        await asyncio.gather(*(one(*clients[number % len(clients)], number) for number in range(REAL_LINES)))
    return time.perf_counter() - began
