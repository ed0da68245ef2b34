"""A gateway before three nodes under eight streams, for RBEE_SOAK_MINUTES (10), while workers are killed, connections
cut, nodes paused, taken out of the inventory and put back.

An answer has a token more or less than was asked for when something was lost or told twice: tokens come with their
probabilities, so they can be counted. An answer that does not end well has to say so within its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from benchmarks.fleet_testbed import MODEL, Served, served
from benchmarks.harness import Comparison
from benchmarks.serving import NO_END

MINUTES = float(os.environ.get("RBEE_SOAK_MINUTES") or 10)
STREAMS, NODES = 8, 3
#: Between two things that go wrong; each node is whole again before the next one.
EVERY_S = 12.0
PAUSED_S = 15.0
SETTLE_S = 20.0
WAYS = ("kill", "kill", "cut", "pause", "remove")


@dataclass
class Tally:
    """ends: answers by how they ended. wrong: those with too few or too many tokens, or without an end."""

    ends: Counter[str] = field(default_factory=Counter)
    struck: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def measure() -> list[Comparison]:
    with served(NODES, "--slots", "4", "--ctx", "1024") as running:
        process = psutil.Process(running.process.pid)
        tally = Tally()
        before = process.num_fds()
        asyncio.run(_load(running, tally))
        time.sleep(SETTLE_S)
        kept = process.num_fds() - before
    print(f"struck: {dict(tally.struck)}; answers: {dict(tally.ends)}")
    for wrong in tally.wrong[:10]:
        print(wrong)
    return [
        Comparison("answers", sum(tally.ends.values()), goal=10**9, least=1, unit=""),
        Comparison("answers lost, doubled or without an end", len(tally.wrong), goal=0, unit=""),
        Comparison("answers that ended with an error, of 100", _errors(tally), goal=5, unit="%"),
        Comparison("file descriptors kept", kept, goal=12, unit="", least=-1000),
    ]


def _errors(tally: Tally) -> float:
    return round(100 * (1 - tally.ends["whole"] / max(1, sum(tally.ends.values()))), 2)


async def _load(running: Served, tally: Tally) -> None:
    until = time.monotonic() + 60 * MINUTES
    async with httpx.AsyncClient(base_url=running.address, timeout=180) as client, asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            tasks.create_task(_stream(client, random.Random(number), until, tally))
        tasks.create_task(asyncio.to_thread(_strike, running, until, tally))


async def _stream(client: httpx.AsyncClient, chance: random.Random, until: float, tally: Tally) -> None:
    while time.monotonic() < until:
        tokens = chance.randrange(1, 120)
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"Tell me about bee {chance.randrange(30)}."}],
            "max_tokens": tokens,
            "stream": True,
            "logprobs": True,
            "logit_bias": NO_END,
            "seed": 1,
        }
        try:
            end, seen = await _answer(client, body)
        except httpx.HTTPError as error:
            end, seen = f"broken: {type(error).__name__}", 0
        tally.ends[end] += 1
        if end == "whole" and seen != tokens:
            tally.wrong.append(f"{seen} of {tokens} tokens")
        elif end.startswith(("broken", "without")):
            tally.wrong.append(end)


async def _answer(client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, int]:
    """How it ended, and the tokens that came."""
    seen = 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return f"status {response.status_code}", 0
        error = ""
        with contextlib.suppress(httpx.RemoteProtocolError):  # after an error event the connection just closes
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "whole", seen
                if line.startswith("data: "):
                    data = json.loads(line.removeprefix("data: "))
                    error = data.get("error", {}).get("code") or error
                    for choice in data.get("choices", ()):
                        seen += len((choice.get("logprobs") or {}).get("content") or ())
    return (f"error {error}" if error else "without an end"), seen


def _strike(running: Served, until: float, tally: Tally) -> None:
    chance = random.Random(0)
    inventory = running.rbee.inventory.read_text()
    while time.monotonic() + EVERY_S + PAUSED_S < until:
        time.sleep(EVERY_S)
        way, node = chance.choice(WAYS), chance.choice(list(running.nodes.values()))
        tally.struck[way] += 1
        if way == "kill":
            for pid in node.pids("worker"):
                node.try_exec(f"kill -KILL {pid}")
        elif way == "cut":
            node.try_exec("pkill -KILL -f 'sshd.*: bee'")
        elif way == "pause":
            node.freeze()
            time.sleep(PAUSED_S)
            node.thaw()
        else:
            others = [each.inventory(tags='["far"]') for each in running.nodes.values() if each is not node]
            running.rbee.inventory.write_text("\n".join(others))
            time.sleep(PAUSED_S)
            running.rbee.inventory.write_text(inventory)
