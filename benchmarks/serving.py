"""A worker and a llama-server side by side, and clients that stream from both in the same way: OpenAI's API over a unix
socket, as httpx speaks it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx

from benchmarks.llama_cpp import NO_KEEP_ALIVE, llama_server
from rbee_remote.protocol import WorkerConfig, WorkerOptions, encode
from tests.testbed import assets

REMOTE = Path(__file__).parent.parent / "remote"
START_S = 60.0
#: The tokens that end a text of the model used here: <|endoftext|> and <|im_end|>. Kept away, so that a stream has as
#: many tokens as it is asked for.
NO_END = {"0": -100, "2": -100}
MODEL = "smollm2:135m"
#: Rounds that do not count.
WARM_UP = 3
#: Six digits, a token each.
_numbers = itertools.count(100_000)

Peers = Mapping[str, httpx.AsyncClient]
Side = TypeVar("Side")


@dataclass(frozen=True, slots=True)
class Streamed:
    """One answer. first_s, total_s: from sending the request. gap_s: the longest between two tokens."""

    first_s: float
    total_s: float
    gap_s: float
    tokens: int


@asynccontextmanager
async def both(slots: int, ctx: int, threads: int, backend: str = "cpu") -> AsyncIterator[Peers]:
    """Clients of a worker ("rbee") and of a llama-server, each with `slots` slots of `ctx` tokens."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(llama_server(assets.model(), slots, ctx, threads, backend=backend))
        ours = await stack.enter_async_context(worker(slots, ctx, threads, backend))
        yield {"rbee": ours, "llama-server": server.client}


@asynccontextmanager
async def worker(slots: int, ctx: int, threads: int, backend: str = "cpu") -> AsyncIterator[httpx.AsyncClient]:
    """A worker with the real model, without a hive, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="rbee-bench-worker-") as folder:
        socket = Path(folder, "w.sock")
        options = WorkerOptions(ctx=ctx, slots=slots, threads=threads, backend=backend)
        config = WorkerConfig(
            secrets.token_hex(8), "model", str(assets.model()), str(socket), options, ctx, -1, slots=slots
        )
        with Path(folder, "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rbee_remote", "worker"),
                stdin=subprocess.PIPE,
                stderr=log,
                env=dict(os.environ) | {"PYTHONPATH": str(REMOTE)},
            )
        try:
            await _configure(process, config)
            transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=NO_KEEP_ALIVE)
            async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=None) as client:
                await _wait_ready(client, process, Path(folder, "log"))
                yield client
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def stream(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Streamed:
    """Send a streaming request and read it to its end. Raises RuntimeError for what is no answer."""
    started = time.perf_counter()
    async with client.stream("POST", path, json={**body, "stream": True}) as response:
        if response.status_code != 200:
            raise RuntimeError(f"{path}: {response.status_code} {(await response.aread()).decode()[:500]}")
        lines = response.aiter_lines()
        arrivals = [time.perf_counter() async for line in lines if line.startswith("data: {") and _has_text(line)]
    if not arrivals:
        raise RuntimeError(f"{path}: an answer without text")
    gaps = [after - before for before, after in itertools.pairwise(arrivals)]
    return Streamed(arrivals[0] - started, time.perf_counter() - started, max(gaps, default=0.0), len(arrivals))


async def in_turn(
    sides: Mapping[str, Side], thing: Callable[[Side, int], Awaitable[float]], rounds: int = 5
) -> dict[str, tuple[float, ...]]:
    """What `thing` measures for each side, a peer's client for instance, one after the other, in each round; it gets
    the number of the round, 0 for one that does not count."""
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            value = await thing(side, number)
            if number:
                samples[name].append(round(value, 5))
    return {name: tuple(values) for name, values in samples.items()}


async def first_tokens(sides: Peers, streams: int, requests: int, model: str = MODEL) -> dict[str, list[float]]:
    """Seconds to the first token of so many requests to each side, in turn, `streams` at once. One token each, so that
    what stands before the model counts; each side has a median of its own, and none is always the first to be asked."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    order = list(sides.items())
    for number in range(-WARM_UP, requests // streams):
        for side, client in order:
            bodies = [question(1, model) for _ in range(streams)]
            answers = await asyncio.gather(*(stream(client, "/v1/chat/completions", body) for body in bodies))
            if number >= 0:  # the first ones open connections
                found[side] += [answer.first_s for answer in answers]
        order.append(order.pop(0))
    return found


def question(tokens: int, model: str = MODEL) -> dict[str, Any]:
    """One that nobody has asked, always of the same length, which is answered with so many tokens."""
    messages = [{"role": "user", "content": f"Tell me about bee {next(_numbers)}."}]
    return {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0, "logit_bias": NO_END}


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def streams_text(streams: int) -> str:
    return f"{streams} stream{'s' if streams > 1 else ''}"


def _has_text(line: str) -> bool:
    chunk = json.loads(line[6:])
    return any(choice.get("text") or choice.get("delta", {}).get("content") for choice in chunk.get("choices", ()))


async def _configure(process: asyncio.subprocess.Process, config: WorkerConfig) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(encode(config)).encode())
    process.stdin.close()


async def _wait_ready(client: httpx.AsyncClient, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while process.returncode is None and time.monotonic() < deadline:
        try:
            if (await client.get("/v1/ready")).is_success:
                return
        except httpx.TransportError:
            pass  # the socket is not there yet
        await asyncio.sleep(0.05)
    raise RuntimeError(f"the worker did not become ready:\n{log.read_text(errors='replace')[-2000:]}")
