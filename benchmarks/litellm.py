"""rbee's gateway before a worker against LiteLLM's proxy before a llama-server, and what each of them adds to what it
stands before.

Both engines have the same model, threads, slots and context on this machine, the way to each is a socket of it, and all
four are asked in turn. The model has few layers, so that what stands before it counts. The proxy has one process, as it
comes and as the gateway has, and logs errors alone, which its documentation recommends.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
import venv
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx

from benchmarks.gateway import free_port, gateway
from benchmarks.harness import Comparison
from benchmarks.llama_cpp import llama_server
from benchmarks.serving import first_tokens, percentile, streams_text
from benchmarks.small_model import cut
from benchmarks.testbed import keeper
from rbee_remote.system.cores import usable_cores
from tests.testbed import assets

SLOTS, CTX, LAYERS = 8, 1024, 3
MODEL = "small"
REQUESTS = 160
LITELLM = "litellm[proxy]==1.83.0"
START_S, STOP_S = 120.0, 10.0


def measure() -> list[Comparison]:
    with keeper() as rbee:
        model = cut(assets.model(), rbee.home / "small.gguf", LAYERS)
        rbee.inventory.write_text(f'[models.{MODEL}]\nmodel = "file:{model}"\n')
        words = [
            "--model",
            MODEL,
            "--slots",
            str(SLOTS),
            "--ctx",
            str(CTX),
            "--keep-alive",
            "never",
            "--max-tokens",
            "1",
        ]
        rbee("infer", "--node", "local", *words, "--max-tokens", "1", "Hello")
        (worker,) = rbee("workers", "list", "local", "--json").json()
        socket = rbee("workers", "show", worker["id"], "--json").json()["socket"]
        with gateway(rbee, "local") as running:
            return asyncio.run(_measure(running.address, Path(socket), model))


async def _measure(address: str, worker: Path, model: Path) -> list[Comparison]:
    port = free_port()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(llama_server(model, SLOTS, CTX, usable_cores(), port=port))
        proxy = await stack.enter_async_context(litellm(port))
        sides = {
            "gateway": httpx.AsyncClient(base_url=address, timeout=None),
            "worker": httpx.AsyncClient(
                transport=httpx.AsyncHTTPTransport(uds=str(worker)), base_url="http://worker", timeout=None
            ),
            "LiteLLM": httpx.AsyncClient(base_url=proxy, timeout=None),
            "llama-server": httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None),
        }
        for client in sides.values():
            await stack.enter_async_context(client)
        return [
            figure
            for streams in (1, 8)
            for figure in _figures(await first_tokens(sides, streams, REQUESTS, MODEL), streams_text(streams))
        ]


def _figures(first: Mapping[str, list[float]], streams: str) -> list[Comparison]:
    figures = []
    for percent in (50, 99):
        ms = {side: round(1000 * percentile(seconds, percent), 2) for side, seconds in first.items()}
        ours, theirs = ms["gateway"] - ms["worker"], ms["LiteLLM"] - ms["llama-server"]
        figures += [
            Comparison(
                f"first token, p{percent}, {streams}", round(ms["gateway"] / ms["LiteLLM"], 3), 1.0, "x", "LiteLLM",
                (ms["gateway"],), (ms["LiteLLM"],), samples_in="ms",
            ),
            Comparison(
                f"added, p{percent}, {streams}", round(ours - theirs, 2), 0.0, "ms", "added by LiteLLM",
                (round(ours, 2),), (round(theirs, 2),), -1000, "ms",
            ),
        ]  # fmt: skip
    return figures


@asynccontextmanager
async def litellm(upstream: int) -> AsyncIterator[str]:
    """URL of LiteLLM's proxy before a port of 127.0.0.1, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="rbee-litellm-") as name:
        folder, port = Path(name), free_port()
        config, log = folder / "config.yaml", folder / "log"
        config.write_text(
            f"model_list:\n  - model_name: {MODEL}\n    litellm_params:\n      model: openai/m\n"
            f"      api_base: http://127.0.0.1:{upstream}/v1\n      api_key: none\n"
        )
        words = (_litellm_folder() / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port))
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *words, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=_environment(folder),
                start_new_session=True,
            )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            await _wait_for(url, process, log)
            yield url
        finally:
            await _end(process)


async def _wait_for(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    deadline = time.monotonic() + START_S
    async with httpx.AsyncClient(base_url=url, timeout=START_S) as client:
        while process.returncode is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if (await client.get("/health/liveliness")).is_success:
                    return
            await asyncio.sleep(0.2)
    raise RuntimeError(f"LiteLLM's proxy did not start:\n{log.read_text(errors='replace')[-2000:]}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """With all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)


def _environment(folder: Path) -> Mapping[str, str]:
    own = {"HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_DOCS": "True"}
    return dict(os.environ) | own | {"LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}


def _litellm_folder() -> Path:
    """`bin` of a virtual environment with the proxy, made once in the cache."""
    folder = assets.cache_folder() / "litellm"
    if not (folder / "bin" / "litellm").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", LITELLM], check=True)
    return folder / "bin"
