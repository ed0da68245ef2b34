"""What the gateway adds to the worker's socket through `ssh -L`."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from benchmarks.fleet_testbed import forwarded, served
from benchmarks.harness import Comparison
from benchmarks.serving import first_tokens, in_turn, percentile, question, stream, streams_text

SLOTS, CTX = 8, 1024
REQUESTS = 160
TOKENS = 128
ROUNDS = 3


def measure() -> list[Comparison]:
    with served(1, "--slots", str(SLOTS), "--ctx", str(CTX)) as running, forwarded(running, "n0") as socket_path:
        return asyncio.run(_measure(running.address, socket_path))


async def _measure(address: str, socket_path: Path) -> list[Comparison]:
    transport = httpx.AsyncHTTPTransport(uds=str(socket_path))
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(httpx.AsyncClient(base_url=address, timeout=None))
        tunnel = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=None)
        )
        sides = {"gateway": gateway, "ssh -L": tunnel}
        figures = []
        for streams in (1, 8):
            first = await first_tokens(sides, streams, REQUESTS)
            for percent, goal in ((50, 3.0), (99, 10.0)):
                name = f"added to the first token, p{percent}, {streams_text(streams)}"
                ours, theirs = (round(1000 * percentile(first[side], percent), 2) for side in sides)
                figures.append(
                    Comparison(name, round(ours - theirs, 2), goal, "ms", "ssh -L", (ours,), (theirs,), -1000, "ms")
                )
        speed = await in_turn(sides, _eight_streams, ROUNDS)
    medians = {side: statistics.median(values) for side, values in speed.items()}
    ratio = round(medians["gateway"] / medians["ssh -L"], 3)
    figures.append(
        Comparison(
            "tokens/s, 8 streams", ratio, 1000, "x", "ssh -L", speed["gateway"], speed["ssh -L"], 0.97, "tokens/s"
        )
    )
    return figures


async def _eight_streams(client: httpx.AsyncClient, number: int) -> float:
    """Tokens a second of all together."""
    del number
    began = time.perf_counter()
    answers = await asyncio.gather(*(stream(client, "/v1/chat/completions", question(TOKENS)) for _ in range(8)))
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - began)
