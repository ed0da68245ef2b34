"""llama-server's command line before a worker of ours: what llama.cpp's own tests start in its place.

A worker has a unix socket, and they want a port of this machine: bytes are passed on between the two. What
llama-server's command line says of every request (its seed, its temperature, how many tokens) is said in each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import gguf

from rbee_remote.protocol import WorkerConfig, WorkerOptions, encode
from rbee_remote.protocol.load import AdapterFile
from tests import tiny_encoders, tiny_models
from tests.testbed import assets, minilm

#: What llama-server takes for one place where nobody says.
CTX = 512
CHUNK = 1 << 16
#: Tokens that the stand-in for a reranker reads.
ENCODER_CTX = 1024


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--ctx-size", type=int, default=CTX)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--alias", default="")
    parser.add_argument("--chat-template-file", type=Path)
    parser.add_argument("--hf-repo", default="")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--temp", type=float)
    parser.add_argument("--n-predict", type=int)
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--reranking", action="store_true")
    parser.add_argument("--lora", type=Path, action="append", default=[])
    options, _ = parser.parse_known_args()
    asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    with tempfile.TemporaryDirectory(prefix="rbee-peer-", dir="/tmp") as name:
        folder = Path(name)
        model = _model(options, folder / "tiny.gguf")
        slots = max(1, options.parallel)
        config = WorkerConfig(
            id="a" * 16, model=options.alias or "tiny", path=str(model), socket=str(folder / "w.sock"),
            options=WorkerOptions(), ctx=max(8, options.ctx_size // slots), slots=slots, keep_alive_s=3600.0, queue=64,
            adapters=tuple(AdapterFile(path.name, str(path), 1.0) for path in options.lora),
        )  # fmt: skip
        async with worker(config):
            said = {"seed": options.seed, "temperature": options.temp, "n_predict": options.n_predict}
            bridge = _bridge(config.socket, {name: value for name, value in said.items() if value is not None})
            server = await asyncio.start_server(bridge, options.host, options.port)
            async with server:
                await ended.wait()


def _model(options: argparse.Namespace, path: Path) -> Path:
    """What stands for the model that llama-server would be given: random weights, but for an encoder, which is another
    of the same vocabulary."""
    if options.embedding:
        return minilm.model()
    if options.reranking:
        tiny_encoders.write_bert(path, gguf.PoolingType.RANK, trained=ENCODER_CTX)
        return path
    template = _template(options.chat_template_file)
    return tiny_models.write(path, "llama", template, fills_in="infill" in options.hf_repo)


def _template(path: Path | None) -> str:
    """One of llama.cpp's own, which lie elsewhere here; "" for none."""
    return (assets.llama_models() / path.name).read_text(encoding="utf-8") if path else ""


@contextlib.asynccontextmanager
async def worker(config: WorkerConfig) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rbee_remote", "worker", stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin
    process.stdin.write(json.dumps(encode(config)).encode())
    process.stdin.close()
    try:
        while not Path(config.socket).exists():  # its process makes it
            assert process.returncode is None
            await asyncio.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _bridge(
    socket: str, said: dict[str, object]
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """said: of every request that generates, unless it says so itself."""

    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner, outer = await asyncio.open_unix_connection(socket)
        except OSError:
            writer.close()
            return
        try:
            with contextlib.suppress(asyncio.IncompleteReadError):
                outer.write(await _first_request(reader, said))
            async with asyncio.TaskGroup() as group:
                group.create_task(one_way(reader, outer))
                group.create_task(one_way(inner, writer))
        finally:
            outer.close()
            writer.close()

    return connected


async def _first_request(reader: asyncio.StreamReader, said: dict[str, object]) -> bytes:
    """Of a connection, with what it leaves to the command line; these clients have one for each."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
    body = await reader.readexactly(int(found[1])) if found else b""
    with contextlib.suppress(ValueError):
        data = json.loads(body)
        if isinstance(data, dict) and data.keys() & {"prompt", "messages", "input_prefix"}:
            known = {"n_predict"} if "max_tokens" in data else set()
            body = json.dumps({name: value for name, value in said.items() if name not in known} | data).encode()
    if found:
        head = head[: found.start(1)] + str(len(body)).encode() + head[found.end(1) :]
    return head + body


if __name__ == "__main__":
    main()
