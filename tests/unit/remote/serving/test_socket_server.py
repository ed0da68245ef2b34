"""What clients can keep open at hive and worker: a real server on a socket, with bounds of a moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from rbee_remote.serving import body
from rbee_remote.serving.body import read_body
from rbee_remote.serving.socket_server import MOST_GATHERED, Bounds, SocketServer, _Gathering
from tests.patience import PATIENCE_S

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
SLOW_ANSWER_S = 0.6


@dataclass(frozen=True)
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, Any]:
        """Status and JSON of the next answer; (0, None) where the server hangs up without a word."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode() if not self.reader.at_eof() else ""
            if not head:
                return 0, None
            length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
            return int(head.split()[1]), json.loads(await self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """All that comes until the server hangs up."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read(-1)


@dataclass(frozen=True)
class Serving:
    path: str
    bounds: Bounds
    running: asyncio.Event
    go_on: asyncio.Event

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def serving(**bounds: Any) -> AsyncIterator[Serving]:
    running, go_on = asyncio.Event(), asyncio.Event()

    async def health(_: Request) -> Response:
        return JSONResponse({"state": "fine"})

    async def echo(request: Request) -> Response:
        return PlainTextResponse(await read_body(request, 100_000))

    async def wait(_: Request) -> Response:
        running.set()
        await go_on.wait()
        return JSONResponse({"state": "done"})

    async def stream(_: Request) -> Response:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(4):
                await asyncio.sleep(SLOW_ANSWER_S / 4)
                yield f"data: {number}\n\n".encode()

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"told": error.detail}, error.status_code, error.headers)

    routes = [
        Route("/health", health),
        Route("/wait", wait),
        Route("/stream", stream),
        Route("/echo", echo, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/s")
        listener.listen(1000)
        limits = Bounds(**bounds)
        server = SocketServer(app, grace_s=1, bounds=limits)
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield Serving(f"{folder}/s", limits, running, go_on)
        finally:
            go_on.set()
            server.end()
            await task
    assert limits.waiting == {}


async def test_who_connects_and_says_nothing_keeps_nobody_out() -> None:
    async with serving(connections=8, head_s=PATIENCE_S) as server:
        silent = [await asyncio.open_unix_connection(server.path) for _ in range(100)]
        async with server.client() as client:
            await client.send(HEALTH)
            assert await client.answer() == (200, {"state": "fine"})
        assert len(server.bounds.waiting) <= 8
        for _, writer in silent:
            writer.close()


async def test_a_connection_without_a_request_is_ended() -> None:
    async with serving(head_s=0.1) as server, server.client() as client:
        assert await client.rest() == b""


async def test_a_head_that_comes_byte_by_byte_is_ended_with_a_word() -> None:
    async with serving(head_s=0.3) as server, server.client() as client:

        async def drip() -> None:
            number = client.writer.get_extra_info("socket").fileno()
            with contextlib.suppress(OSError):  # the server has hung up, and its answer is still to be read
                while True:
                    os.write(number, b"G")
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        status, told = await client.answer()
        dripping.cancel()
    assert (status, told["error"]["code"]) == (408, "USAGE")
    assert "head of the request" in told["error"]["message"]


async def test_a_head_is_refused_once_64_kb_of_it_are_no_whole_one() -> None:
    """h11's rule: what comes whole within one read, of 256 KB at most, may be longer."""
    begun = b"GET /health HTTP/1.1\r\nHost: x\r\nX: "
    async with serving() as server:
        for size, expected in ((2**16, 200), (2**16 + 1, 400)):
            async with server.client() as client:
                await client.send(begun + b"x" * (size - len(begun)))
                if expected == 200:
                    await client.send(b"\r\n\r\n")
                assert (await client.answer())[0] == expected


async def test_more_requests_than_there_may_be_are_refused_and_come_again() -> None:
    async with serving(connections=2, head_s=PATIENCE_S) as server, server.client() as one, server.client() as two:
        for client in (one, two):
            await client.send(HEALTH.replace(b"/health", b"/wait"))
            await server.running.wait()
            server.running.clear()
        async with server.client() as third:
            await third.send(HEALTH)
            status, told = await third.answer()
            assert (status, told["error"]["code"]) == (503, "ALL_SLOTS_BUSY")
            assert await third.rest() == b""
        server.go_on.set()
        assert [await client.answer() for client in (one, two)] == [(200, {"state": "done"})] * 2
        async with server.client() as fourth:
            await fourth.send(HEALTH)
            assert (await fourth.answer())[0] == 200


async def test_a_body_that_comes_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.2)
    async with serving() as server, server.client() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        status, told = await client.answer()
        assert (status, told) == (408, {"told": "only 3 bytes of the request's body came within 0.2 s"})
        assert await client.rest() == b"", "what would still come is of no use"


async def test_a_body_that_takes_its_time_and_keeps_coming_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.5)
    monkeypatch.setattr(body, "SLOWEST_BYTES_PER_S", 100)
    async with serving() as server, server.client() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(10):
            await client.send(b"x" * 100)
            await asyncio.sleep(0.1)
        assert (await client.rest()).endswith(b"x" * 1000)


async def test_a_body_that_is_too_large_is_refused_before_its_end() -> None:
    async with serving() as server, server.client() as client:
        await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert (await client.answer())[0] == 413
    async with serving() as server, server.client() as client:
        chunk = b"%x\r\n%b\r\n" % (100_001, b"x" * 100_001)
        await client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
        assert (await client.answer())[0] == 413


async def test_a_long_answer_and_a_slow_reader_are_not_hurried() -> None:
    async with serving(connections=1, head_s=0.1) as server, server.client() as client:
        await client.send(HEALTH.replace(b"/health", b"/stream"))
        await asyncio.sleep(SLOW_ANSWER_S)
        told = await client.rest()
    assert [told.count(f"data: {number}".encode()) for number in range(4)] == [1, 1, 1, 1]


async def test_what_is_no_http_is_told_so_in_json() -> None:
    async with serving() as server, server.client() as client:
        await client.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        status, told = await client.answer()
    assert (status, told["error"]["code"]) == (400, "USAGE")


def test_most_descriptors_are_left_for_other_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (100, 100))
    assert Bounds.of_this_process().connections == 50


class Transport:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.told.append(data)

    def close(self) -> None:
        self.told.append("closed")

    def abort(self) -> None:
        self.told.append("aborted")

    def is_closing(self) -> bool:
        return "closed" in self.told


async def test_what_is_written_in_one_turn_is_sent_at_once_and_within_bounds() -> None:
    transport = Transport()
    gathering = _Gathering(transport, lambda: None)  # type: ignore[arg-type]
    gathering.write(b"head")
    gathering.write(b"body")
    assert transport.told == []
    await asyncio.sleep(0)
    gathering.write(b"x" * (MOST_GATHERED + 1))
    gathering.write(b"end")
    gathering.close()
    assert transport.told == [b"headbody", b"x" * (MOST_GATHERED + 1), b"end", "closed"]
    assert gathering.is_closing()


async def test_what_waits_for_an_aborted_client_is_dropped() -> None:
    transport = Transport()
    gathering = _Gathering(transport, lambda: None)  # type: ignore[arg-type]
    gathering.write(b"never read")
    gathering.abort()
    await asyncio.sleep(0)
    assert transport.told == ["aborted"]
