"""Hives that tell every second of a worker that generates: `scripted_hives.py FOLDER COUNT`, each at
FOLDER/NUMBER/hive.sock until the process is ended."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rbee_remote.protocol import GpuLoad, HiveNews, NodeLoad, Work, WorkerLoad, WorkerState
from tests.doubles.hive import model_info, worker_info

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def news(number: int) -> bytes:
    return _event("news", asdict(HiveNews((worker_info(f"{number:016x}", WorkerState.BUSY),), (model_info(),))))


def load(number: int) -> bytes:
    """A node with a GPU, whose worker generates some 40 to 90 tokens a second."""
    now = time.monotonic()
    worker = WorkerLoad(f"{number:016x}", 2, number % 3, 900, Work(int(now * (40 + number % 50)), 90, 7, 0.2))
    gpu = GpuLoad("CUDA0", "NVIDIA H100 80GB HBM3", 85_520, 31_200, (now / 60) % 1)
    return _event("load", asdict(NodeLoad(round(now, 3), 16, 0.31, 64_000, 9_100, (gpu,), (worker,))))


def _event(name: str, data: object) -> bytes:
    body = f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


async def _serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_HEAD + news(number))
        while not writer.is_closing():
            writer.write(load(number))
            await writer.drain()
            await asyncio.sleep(1.0)
    writer.close()


async def _run(folder: Path, count: int) -> None:
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        await asyncio.start_unix_server(lambda r, w, n=number: _serve(n, r, w), place / "hive.sock")  # type: ignore[misc]
    (folder / "serving").touch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_run(Path(sys.argv[1]), int(sys.argv[2])))
