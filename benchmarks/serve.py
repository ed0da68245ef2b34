"""What the gateway adds to the worker's socket through `ssh -L`, and how it stands against LiteLLM's proxy before a
llama-server."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx

from benchmarks.fleet_testbed import MODEL, forwarded, served
from benchmarks.harness import Comparison
from benchmarks.llama_cpp import llama_server
from benchmarks.serving import NO_END, Peers, in_turn, stream
from rbee_remote.system.cores import usable_cores
from tests.testbed import assets

SLOTS, CTX = 8, 1024
REQUESTS = 120
TOKENS = 128
ROUNDS = 3
LITELLM = "litellm[proxy]==1.83.0"
START_S = 120.0


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
            first = await _first_bytes(sides, streams)
            for percent, goal in ((50, 3.0), (99, 10.0)):
                name = f"added to the first token, p{percent}, {streams} stream{'s' if streams > 1 else ''}"
                ours, theirs = (_percentile(first[side], percent) for side in sides)
                figures.append(Comparison(name, round(1000 * (ours - theirs), 2), goal, "ms", "ssh -L", least=-1000))
        speed = await in_turn(sides, _eight_streams, ROUNDS)
        medians = {side: statistics.median(values) for side, values in speed.items()}
        ratio = round(medians["gateway"] / medians["ssh -L"], 3)
        figures.append(
            Comparison(
                "tokens/s, 8 streams", ratio, 1000, "x", "ssh -L", speed["gateway"], speed["ssh -L"], 0.97, "tokens/s"
            )
        )
        figures += await _against_litellm(gateway)
    return figures


async def _against_litellm(gateway: httpx.AsyncClient) -> list[Comparison]:
    """Both with the same model and as many slots; one token each, so that what stands before the model counts."""
    async with llama_server(assets.model(), SLOTS, CTX, usable_cores()) as server, litellm(server.socket) as proxy:
        first = await _first_bytes({"gateway": gateway, "LiteLLM": proxy}, 1)
    return [
        Comparison(
            f"first token, p{percent}",
            round(_percentile(first["gateway"], percent) / _percentile(first["LiteLLM"], percent), 3),
            1.0,
            "x",
            "LiteLLM before llama-server",
        )
        for percent in (50, 99)
    ]


async def _first_bytes(sides: Peers, streams: int) -> dict[str, list[float]]:
    """Seconds to the first token of REQUESTS requests of each side, in turn, `streams` at once."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-2, REQUESTS // streams):
        for side, client in sides.items():
            bodies = [_body(f"{number} {each} {side}", 1) for each in range(streams)]
            answers = await asyncio.gather(*(stream(client, "/v1/chat/completions", body) for body in bodies))
            if number >= 0:  # the first ones open connections
                found[side] += [answer.first_s for answer in answers]
    return found


async def _eight_streams(client: httpx.AsyncClient, number: int) -> float:
    """Tokens a second of all together."""
    began = time.perf_counter()
    bodies = [_body(f"{number} {each}", TOKENS) for each in range(8)]
    answers = await asyncio.gather(*(stream(client, "/v1/chat/completions", body) for body in bodies))
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - began)


def _body(question: str, tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": f"Tell me about bee {question}."}]
    return {"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0, "logit_bias": NO_END}


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


@asynccontextmanager
async def litellm(upstream: Path) -> AsyncIterator[httpx.AsyncClient]:
    """LiteLLM's proxy as it comes, before a server that listens on a unix socket; it needs a port, so one is opened on
    loopback that leads there."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rbee-litellm-")))
        port = await stack.enter_async_context(_port_to(upstream))
        config = folder / "config.yaml"
        config.write_text(
            f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/m\n"
            f"      api_base: http://127.0.0.1:{port}/v1\n      api_key: none\n"
        )
        own = _free_port()
        litellm = str(_litellm_folder() / "litellm")
        words = [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(own)]
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*words, stdout=log, stderr=log, env=_environment(folder))
        try:
            proxy = httpx.AsyncClient(base_url=f"http://127.0.0.1:{own}", timeout=None)
            client = await stack.enter_async_context(proxy)
            await _wait_for(client, folder / "log")
            yield client
        finally:
            process.terminate()
            await process.wait()


@asynccontextmanager
async def _port_to(upstream: Path) -> AsyncIterator[int]:
    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(upstream)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _wait_for(client: httpx.AsyncClient, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if (await client.get("/health/liveliness")).is_success:
                return
        except httpx.TransportError:
            await asyncio.sleep(0.2)
    raise RuntimeError(f"LiteLLM's proxy did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _environment(folder: Path) -> Mapping[str, str]:
    return dict(os.environ) | {"HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}


def _litellm_folder() -> Path:
    """`bin` of a virtual environment with the proxy, made once in the cache."""
    folder = assets.cache_folder() / "litellm"
    if not (folder / "bin" / "litellm").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", LITELLM], check=True)
    return folder / "bin"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
