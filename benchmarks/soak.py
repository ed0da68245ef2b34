"""A worker under clients that come, go and come back, for RBEE_SOAK_MINUTES (10): what it holds must not grow.

Eight streams over six slots, so that some wait. Each request is read to its end, canceled, dropped, dropped and taken
up again, overtaken by its deadline, or left before its first byte; some ask for logprobs, a schema or a long prompt.
Every event that is read is counted: a gap or a repetition is a broken stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from benchmarks.harness import Comparison
from benchmarks.serving import worker
from rbee_remote.system.cores import usable_cores

MINUTES = float(os.environ.get("RBEE_SOAK_MINUTES") or 10)
STREAMS, SLOTS, CTX = 8, 6, 2048
SAMPLE_S = 2.0
#: Requests that nobody reads go on for a minute, and events of those that ended stay as long.
SETTLE_S = 75.0

WAYS = ("whole", "whole", "whole", "cancel", "drop", "resume", "resume", "deadline", "leave")
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "legs": {"type": "integer"}}}
SYSTEM = "You answer questions about bees, briefly and with care. " * 12


@dataclass(frozen=True, slots=True)
class Sample:
    """private_mb: memory that is the worker's alone, the mapped weights left out."""

    minute: float
    private_mb: float
    fds: int
    threads: int


@dataclass
class Tally:
    """requests: by what became of them. broken: streams with a gap or an event told twice."""

    requests: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    events: int = 0


def measure() -> list[Comparison]:
    return asyncio.run(_measure())


async def _measure() -> list[Comparison]:
    async with worker(SLOTS, CTX, usable_cores()) as client:
        process = _worker_process()
        await _ask(client, random.Random(0), "whole", Tally())
        at_first, tally = _sample(process, 0.0), Tally()
        samples = await _under_load(client, process, tally)
        lost = await _slots_lost(client)
        await _connections_closed(client, process, at_first.fds)
        at_last = _sample(process, MINUTES)
    print(
        f"{sum(tally.requests.values())} requests, {tally.events} events read: {dict(sorted(tally.requests.items()))}"
    )
    _print_samples(samples)
    memory = tuple(one.private_mb for one in samples)
    return [
        Comparison("requests", sum(tally.requests.values()), goal=10**9, least=1, unit=""),
        Comparison("broken streams", tally.broken, goal=0, unit=""),
        Comparison("slots lost", lost, goal=0, unit=""),
        Comparison("memory", _growth(samples), goal=0.5, unit="MB/min", ours=memory, samples_in="MB", least=-1000),
        Comparison("file descriptors kept", at_last.fds - at_first.fds, goal=0, unit="", least=-100),
        Comparison(
            "threads kept", at_last.threads - max(one.threads for one in samples[:5]), goal=2, unit="", least=-9
        ),
    ]


def _private_mb(sample: Sample) -> float:
    return sample.private_mb


def _growth(samples: Sequence[Sample]) -> float:
    """MB a minute from the highest of the first half to the highest of the second, warming up left out.

    Not a line through all of them: the kernel takes pages away from whoever does not use them, and gives them back,
    which tilts a line either way.
    """
    warm = samples[len(samples) // 10 :]
    halves = warm[: len(warm) // 2], warm[len(warm) // 2 :]
    first, second = (max(half, key=_private_mb) for half in halves)
    return round((second.private_mb - first.private_mb) / max(second.minute - first.minute, 1 / 60), 3)


def _worker_process() -> psutil.Process:
    (found,) = (child for child in psutil.Process().children() if "worker" in child.cmdline())
    return found


def _sample(process: psutil.Process, minute: float) -> Sample:
    private = process.memory_full_info().uss / 1e6
    return Sample(round(minute, 2), round(private, 1), process.num_fds(), process.num_threads())


async def _under_load(client: httpx.AsyncClient, process: psutil.Process, tally: Tally) -> list[Sample]:
    """Samples from the beginning to the end of the streams."""
    began = time.monotonic()
    samples = []
    async with asyncio.TaskGroup() as tasks:
        for number in range(STREAMS):
            tasks.create_task(_stream(client, random.Random(number), began + 60 * MINUTES, tally))
        while (minute := (time.monotonic() - began) / 60) < MINUTES:
            samples.append(_sample(process, minute))
            await asyncio.sleep(SAMPLE_S)
    return samples


async def _stream(client: httpx.AsyncClient, chance: random.Random, until: float, tally: Tally) -> None:
    while time.monotonic() < until:
        way = chance.choice(WAYS)
        try:
            tally.requests[await _ask(client, chance, way, tally)] += 1
        except AssertionError:
            tally.broken += 1


async def _ask(client: httpx.AsyncClient, chance: random.Random, way: str, tally: Tally) -> str:
    """One request on its way; what became of it. Raises AssertionError for a stream that is not whole."""
    body = _request(chance) | ({"timeout_s": chance.uniform(0.05, 2.0)} if way == "deadline" else {})
    path = f"/v1/requests/{body['request_id']}"
    most = chance.randrange(1, 40) if way in ("cancel", "drop", "resume") else None
    if way == "leave":
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0.0, 0.2)):
                await client.post("/v1/inference", json=body)
        return "left"
    ended, seen = "", 0
    async with client.stream("POST", "/v1/inference", json=body) as response:
        events = _events(response, 0, tally)
        async for event in events:
            seen, ended = event
            if seen == most:
                break
        if way == "cancel" and not ended:
            await client.delete(path)
            ended = await _end(events)
    if way == "resume" and not ended:
        async with client.stream("GET", f"{path}/events", headers={"Last-Event-ID": str(seen)}) as response:
            ended = await _end(_events(response, seen, tally))
    assert ended or way == "drop", "a stream without an end"
    return ended or "dropped"


async def _events(response: httpx.Response, after: int, tally: Tally) -> AsyncIterator[tuple[int, str]]:
    """The number of each event, and what ends the request: "" but for the last one."""
    assert response.status_code == 200, (await response.aread()).decode()
    number = after
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "id":
            assert int(value) == number + 1, f"event {value} follows event {number}"
            number += 1
            tally.events += 1
        elif name == "data":
            yield number, json.loads(value).get("finish_reason", "")


async def _end(events: AsyncIterator[tuple[int, str]]) -> str:
    """Read to the end."""
    ended = ""
    async for _, reason in events:
        ended = reason
    return ended


def _request(chance: random.Random) -> dict[str, Any]:
    sampling: dict[str, Any] = {"temperature": chance.choice((0.0, 0.8))}
    if chance.random() < 0.2:
        sampling["logprobs"] = chance.randrange(5)
    elif chance.random() < 0.2:
        sampling["json_schema"] = SCHEMA
    question = f"Tell me about bee number {chance.randrange(1000)}." * (20 if chance.random() < 0.1 else 1)
    return {
        "request_id": secrets.token_hex(16),
        "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
        "max_tokens": chance.randrange(1, 120),
        "sampling": sampling,
    }


async def _slots_lost(client: httpx.AsyncClient) -> int:
    """Slots that are not free after all requests must have ended and been forgotten."""
    deadline = time.monotonic() + 2 * SETTLE_S
    while (status := (await client.get("/v1/health")).json())["state"] != "idle" and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    return int(status["slots"] - status["slots_free"])


async def _connections_closed(client: httpx.AsyncClient, process: psutil.Process, fds: int) -> None:
    """The client keeps idle connections for 5 s, and closes them when it sends the next request."""
    deadline = time.monotonic() + 15
    while process.num_fds() > fds and time.monotonic() < deadline:
        await client.get("/v1/health")
        await asyncio.sleep(0.5)


def _print_samples(samples: list[Sample]) -> None:
    """About a dozen of them."""
    print(f"{'minute':>8}{'private MB':>12}{'fds':>6}{'threads':>9}")
    for one in samples[:: max(1, len(samples) // 12)]:
        print(f"{one.minute:8.2f}{one.private_mb:12.1f}{one.fds:6}{one.threads:9}")
