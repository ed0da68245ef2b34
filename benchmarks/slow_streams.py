"""200 slow streams held at once by one `rbee serve`, before four nodes behind a real sshd whose workers have a script
in place of a model: whether every byte arrives, what memory it takes, and how late the event loop is, beside one that
does nothing, which the machine alone makes late."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import scripted_node
from benchmarks.fleet_testbed import MODEL
from benchmarks.gateway import Gateway, gateway
from benchmarks.harness import Comparison
from benchmarks.loopback_fleet import loopback_nodes
from benchmarks.serving import percentile
from benchmarks.testbed import keeper
from rbee.gateway.records import loop_lag
from tests.ssh.scripted_worker import answer
from tests.testbed.cli import Rbee

NODES, SLOTS = 4, 50
STREAMS = NODES * SLOTS
CTX = 512
#: Less than a stream takes, which is 145 steps.
HELD_S = 25.0
#: Of the kernel's file for a process's memory, how often.
LOOK_S = 0.5
CONTENT = re.compile(rb'"content": ?"[^"]')
LAG = "rbee_gateway_loop_lag_seconds_bucket"


@dataclass(frozen=True, slots=True)
class Busy:
    """cpu_s: of the gateway's process. lag_s: of its event loop, which 99 of 100 looks stay below."""

    seconds: float
    cpu_s: float
    lag_s: float


def measure() -> list[Comparison]:
    with keeper() as rbee:
        return asyncio.run(_measure(rbee))


async def _measure(rbee: Rbee) -> list[Comparison]:
    script = f'exec "{sys.executable}" -P "{scripted_node.__file__}" "$0" "$@"'
    async with loopback_nodes(rbee, NODES, "--slots", str(SLOTS), "--ctx", str(CTX), python=lambda _: script):
        with gateway(rbee, "@far") as running:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=running.address, timeout=None, limits=limits) as client:
                await _until_up(client)
                peak = asyncio.create_task(_peak_mb(running))
                begun = asyncio.Semaphore(0)
                tasks = [asyncio.create_task(_stream(client, f"s{number}", begun)) for number in range(STREAMS)]
                opened = await _while(client, running, _all(begun))
                idle = asyncio.create_task(_idle_loop())
                held = await _while(client, running, idle)
                at_once = sum(not task.done() for task in tasks)
                whole = await asyncio.gather(*tasks)
                peak.cancel()
            peak_mb = (await asyncio.gather(peak))[0]
    print(f"while they open: {opened}\nwhile all are open: {held}")
    return [
        Comparison("streams held at once", at_once, goal=STREAMS, least=STREAMS, unit=""),
        Comparison("streams not whole", whole.count(False), goal=0, unit=""),
        Comparison("memory of the gateway, at most", round(peak_mb, 1), goal=150, unit="MB"),
        _lag(held.lag_s, idle.result()),
    ]


async def _while(client: httpx.AsyncClient, running: Gateway, thing: Awaitable[object]) -> Busy:
    """What the gateway does until `thing` is over."""
    process = psutil.Process(running.process.pid)
    lags, cpu, began = await _lags(client), process.cpu_times(), time.monotonic()
    await thing
    seconds, now = time.monotonic() - began, process.cpu_times()
    counts = {bound: count - lags[bound] for bound, count in (await _lags(client)).items()}
    cpu_s = now.user + now.system - cpu.user - cpu.system
    return Busy(round(seconds, 1), round(cpu_s, 1), round(quantile(0.99, counts), 4))


async def _idle_loop() -> float:
    """Seconds that the loop of another process was late, p99, over HELD_S."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.slow_streams"), stdout=asyncio.subprocess.PIPE
    )
    try:
        return percentile(json.loads((await process.communicate())[0]), 99)
    finally:
        with suppress(ProcessLookupError):
            process.kill()


async def _late() -> list[float]:
    found: list[float] = []
    async with loop_lag.watched(found.append):
        await asyncio.sleep(HELD_S)
    return found


def _lag(ours_s: float, idle_s: float) -> Comparison:
    ours, idle = (round(1000 * seconds, 2) for seconds in (ours_s, idle_s))
    return Comparison(
        "lag of its event loop, p99", ours, goal=20, unit="ms", against="a loop that does nothing", ours=(ours,),
        theirs=(idle,), samples_in="ms",
    )  # fmt: skip


async def _all(begun: asyncio.Semaphore) -> None:
    for _ in range(STREAMS):
        await begun.acquire()


async def _until_up(client: httpx.AsyncClient) -> None:
    """All nodes are connected, and their workers known."""
    async with asyncio.timeout(60):
        while sum(value for name, value in await _samples(client) if name == "rbee_gateway_slots") < STREAMS:
            await asyncio.sleep(0.2)


async def _stream(client: httpx.AsyncClient, prompt: str, begun: asyncio.Semaphore) -> bool:
    """Whether all of it came. begun: released with the first byte of content."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True, "temperature": 0}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        answered, has_begun = b"", False
        async for piece in response.aiter_raw():
            answered += piece
            if not has_begun and (has_begun := bool(CONTENT.search(piece))):
                begun.release()
    return response.status_code == 200 and _text(answered) == answer(prompt).decode()


def _text(body: bytes) -> str:
    """Of an answer that has come to its end, else ""."""
    lines = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    if not lines or lines.pop() != "[DONE]":
        return ""
    choices = [choice for line in lines for choice in json.loads(line).get("choices", ())]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


async def _peak_mb(running: Gateway) -> float:
    """Until it is cancelled."""
    process, most = psutil.Process(running.process.pid), 0
    try:
        while True:
            most = max(most, process.memory_info().rss)
            await asyncio.sleep(LOOK_S)
    except asyncio.CancelledError:
        return most / 1e6


async def _samples(client: httpx.AsyncClient) -> list[tuple[str, float]]:
    text = (await client.get("/metrics")).text
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [(f"{each.name} {each.labels['le']}" if each.name == LAG else each.name, each.value) for each in found]


async def _lags(client: httpx.AsyncClient) -> dict[float, float]:
    """How often the loop was at most so many seconds late."""
    found = await _samples(client)
    return {float(name.split()[1]): value for name, value in found if name.startswith(LAG)}


def quantile(share: float, buckets: Mapping[float, float]) -> float:
    """Of a histogram's counts up to each bound, as Prometheus has it: even within a bucket."""
    bounds = sorted(buckets)
    wanted, below, low = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= wanted and buckets[bound] > below:
            return low if bound == float("inf") else low + (bound - low) * (wanted - below) / (buckets[bound] - below)
        below, low = buckets[bound], bound
    return low


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_late())))
