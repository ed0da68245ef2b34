"""Clients that read slowly, or not at all: real connections, with TLS and without, whose kernels hold little."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rbee.gateway.access.listen import tls_context
from rbee.gateway.access.readers import BEHIND, Room
from rbee.gateway.base.views import NodeState
from rbee.gateway.requests.app import make_app
from rbee.gateway.requests.parts import AppSettings
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.serving.socket_server import Bounds, SocketServer
from tests.doubles.certificate import make_certificate
from tests.doubles.gateway import (
    USAGE,
    Reply,
    ScriptedWorker,
    Setting,
    chat,
    chat_script,
    plain,
    rendered,
    resuming,
    setting,
)
from tests.patience import PATIENCE_S

#: Bytes of a piece, and about what two kernels hold of an answer that nobody reads.
PIECE, KERNELS = 8192, 2**18
STEPS = chat_script(["x" * 3000] * 300)
SIZE = len(plain(STEPS))


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


class Served:
    """A gateway whose clients have `room`, and what it takes to ask it."""

    def __init__(self, world: Setting, server: SocketServer, bounds: Bounds, port: int, tls: Any) -> None:
        self.world = world
        self.bounds = bounds
        self._server = server
        self._port = port
        self._tls: ssl.SSLContext | None = tls
        self.writers: list[asyncio.StreamWriter] = []

    async def ask(self, stream: bool = True) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A client that has asked and reads nothing yet."""
        reader, writer = await self.connect()
        content = json.dumps(chat(stream=stream)).encode()
        head = b"POST /v1/c HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(content) + content)
        return reader, writer

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", self._port))
        name = "localhost" if self._tls else None
        reader, writer = await asyncio.open_connection(sock=client, limit=1, ssl=self._tls, server_hostname=name)
        self.writers.append(writer)
        return reader, writer

    @property
    def connections(self) -> list[Any]:
        return list(self._server.server_state.connections)

    @property
    def finishes(self) -> list[str]:
        return [each.finish for each in self.world.recorder.requests]


@contextlib.asynccontextmanager
async def served(world: Setting, room: Room, folder: Path | None = None) -> AsyncIterator[Served]:
    """folder: for the certificate of one that speaks TLS."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    trusted = context = None
    if folder:
        certificate, key = make_certificate(folder, "one")
        context, trusted = tls_context(certificate, key), ssl.create_default_context(cafile=str(certificate))
        trusted.check_hostname = False
    bounds = Bounds(flow=room.flow)
    server = SocketServer(
        make_app(world.parts), grace_s=1, bounds=bounds, encrypted=[listener] if context else [], tls=context
    )
    task = asyncio.create_task(server.serve([] if context else [listener]))
    gateway = Served(world, server, bounds, listener.getsockname()[1], trusted)
    try:
        yield gateway
    finally:
        for writer in gateway.writers:
            writer.transport.abort()
        server.end()
        await task
        listener.close()


async def everything(reader: Any) -> bytes:
    """Read fast."""
    reader._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
    reader._limit = 2**20
    async with asyncio.timeout(PATIENCE_S):
        return bytes(await reader.read())


async def whole(reader: asyncio.StreamReader) -> bytes:
    """The body of a whole answer: HTTP's own end was there, too."""
    answer = await everything(reader)
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert rest.endswith(b"0\r\n\r\n")
    body = bytearray()
    while not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return bytes(body)


def scripted(*replies: Reply) -> ScriptedWorker:
    return ScriptedWorker(*(replies or [Reply(resuming(STEPS), cuts=[PIECE])]))


@pytest.mark.parametrize("encrypted", [False, True])
async def test_who_reads_nothing_keeps_no_place_and_has_the_whole_answer_later(encrypted: bool, tmp_path: Path) -> None:
    worker = scripted()
    world, room = setting(a=worker), Room()
    async with served(world, room, tmp_path if encrypted else None) as gateway:
        reader, _ = await gateway.ask()
        await until(lambda: worker.requests and not worker.open and not world.dispatcher.open)
        assert room.held > SIZE - KERNELS or encrypted
        assert (gateway.finishes, world.gate.open_requests) == ([], 1)
        other, _ = await gateway.ask()
        assert await whole(other) == plain(STEPS)
        await until(lambda: gateway.finishes == [""])
        assert await whole(reader) == plain(STEPS)
        await until(lambda: not world.gate.open_requests and not room.held)
    assert [(each.finish, each.usage) for each in world.recorder.requests] == [("", USAGE)] * 2


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("bound", ["each", "together"])
async def test_a_worker_waits_where_there_is_no_room(bound: str, encrypted: bool, tmp_path: Path) -> None:
    worker = scripted()
    world = setting(a=worker)
    most = 4 * BEHIND
    room = Room(each=most) if bound == "each" else Room(together=most)
    async with served(world, room, tmp_path if encrypted else None) as gateway:
        clients = [await gateway.ask() for _ in range(3)]
        await until(lambda: room.held >= (3 * most if bound == "each" else most))
        assert worker.open == 3
        assert room.held <= (3 * (most + 2 * PIECE) if bound == "each" else most + 3 * (BEHIND + 2 * PIECE))
        for reader, _ in clients:
            assert await whole(reader) == plain(STEPS)
        await until(lambda: not room.held)
    assert gateway.finishes == [""] * 3


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("room", [Room(each=4 * BEHIND, no_room_s=0.3), Room(reader_s=0.3)])
async def test_who_takes_nothing_is_cut_off(
    room: Room, encrypted: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the worker waits, and when it is done."""
    worker = scripted()
    world = setting(a=worker)
    async with served(world, room, tmp_path if encrypted else None) as gateway:
        await gateway.ask()
        await until(lambda: gateway.finishes)
        assert (worker.open, world.dispatcher.open, world.gate.open_requests, room.held) == (0, 0, 0, 0)
    (ended,) = world.recorder.requests
    assert (ended.finish, ended.status) == ("READER_TOO_SLOW", 499)
    assert (ended.usage == USAGE) == (room.each > SIZE)
    assert f"the client of request {ended.request_id} read its answer too slowly" in caplog.text


@pytest.mark.parametrize("each", [4 * BEHIND, 2 * SIZE])
@pytest.mark.parametrize("encrypted", [False, True])
async def test_who_leaves_frees_everything_at_once(each: int, encrypted: bool, tmp_path: Path) -> None:
    """While the worker waits, and when it is done."""
    worker = scripted()
    world = setting(a=worker)
    room = Room(each=each)
    async with served(world, room, tmp_path if encrypted else None) as gateway:
        _, writer = await gateway.ask()
        await until(lambda: room.held >= 4 * BEHIND and (each == 4 * BEHIND or not worker.open))
        writer.transport.abort()
        await until(lambda: gateway.finishes)
        assert (worker.open, world.dispatcher.open, world.gate.open_requests, room.held) == (0, 0, 0, 0)
    assert gateway.finishes == ["REQUEST_CANCELED"]


async def test_what_lies_here_counts_as_given_when_another_worker_goes_on() -> None:
    half = len(rendered(STEPS)) // 2
    dead = scripted(Reply(resuming(STEPS), cuts=[PIECE], breaks_at=half, error=SilenceError("POST", 10)))
    alive = scripted()
    world = setting(a=dead, b=alive)
    async with served(world, Room()) as gateway:
        reader, _ = await gateway.ask()
        await until(lambda: alive.requests and not world.dispatcher.open)
        assert await whole(reader) == plain(STEPS)
        await until(lambda: gateway.finishes)
    assert [(each.finish, each.failovers) for each in world.recorder.requests] == [("", 1)]


async def test_a_whole_answer_is_read_later_too() -> None:
    content = json.dumps({"x": "y" * 2_000_000}).encode()
    world = setting(a=scripted(Reply(content, headers={"content-type": "application/json"})))
    async with served(world, Room()) as gateway:
        reader, _ = await gateway.ask(stream=False)
        await until(lambda: world.dispatcher.wanted and not world.dispatcher.open)
        assert gateway.finishes == []
        assert (await everything(reader)).endswith(content)
        await until(lambda: gateway.finishes == [""])


HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("encrypted", [False, True])
async def test_who_asks_on_and_takes_nothing_gets_no_more_and_is_cut_off(encrypted: bool, tmp_path: Path) -> None:
    """Of answers of the gateway's own, which need no key."""
    room = Room(reader_s=0.3)
    async with served(setting(), room, tmp_path if encrypted else None) as gateway:
        _, writer = await gateway.connect()
        writer.write(HEALTH * 3_000)
        await until(lambda: gateway.connections)
        most = 0
        while gateway.connections:
            most = max([most, *(each.flow._transport.get_write_buffer_size() for each in gateway.connections)])
            await asyncio.sleep(0.01)
        assert most <= 3 * BEHIND
        assert (room.held, len(gateway.bounds.waiting)) == (0, 0)


async def test_who_takes_its_answers_late_is_answered_on() -> None:
    async with served(setting(), Room()) as gateway:
        reader, writer = await gateway.connect()
        writer.write(HEALTH * 2_000 + HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await until(lambda: any(each.flow.is_behind for each in gateway.connections))
        assert (await everything(reader)).count(b"HTTP/1.1 200") == 2_001


async def test_the_rest_of_an_answer_that_failed_is_not_kept_for_ever() -> None:
    half = len(rendered(STEPS)) // 2
    dead = scripted(Reply(resuming(STEPS), cuts=[PIECE], breaks_at=half, error=HungUpError("POST")))
    world, room = setting(a=dead, settings=AppSettings(back_s=0.01, resume_s=0.01)), Room(reader_s=0.3)
    world.fleet.set_state("a", NodeState.DOWN)
    async with served(world, room) as gateway:
        await gateway.ask()
        await until(lambda: gateway.finishes and gateway.finishes != [""])
        await until(lambda: not gateway.connections)
        assert room.held == 0


async def little(gateway: Served, writer: asyncio.StreamWriter) -> None:
    """Ask until something stays here for the client, which is not behind yet, or only below TLS."""
    await until(lambda: gateway.connections)
    flow, looks = gateway.connections[0].flow, 0
    while looks < 10:
        if flow._transport.get_write_buffer_size() or flow._below_tls:
            looks += 1
        else:
            writer.write(HEALTH * 20)
            looks = 0
        await asyncio.sleep(0.01)
    assert not flow.write_paused


@pytest.mark.parametrize("encrypted", [False, True])
async def test_little_that_nobody_takes_is_not_kept_for_ever_either(encrypted: bool, tmp_path: Path) -> None:
    async with served(setting(), Room(reader_s=1), tmp_path if encrypted else None) as gateway:
        _, writer = await gateway.connect()
        await little(gateway, writer)
        (flow,) = (each.flow for each in gateway.connections)
        await until(lambda: not gateway.connections)
        assert flow.was_cut_off


@pytest.mark.parametrize("encrypted", [False, True])
async def test_who_has_taken_what_lay_here_waits_for_its_next_request(encrypted: bool, tmp_path: Path) -> None:
    async with served(setting(), Room(), tmp_path if encrypted else None) as gateway:
        reader, writer = await gateway.connect()
        await little(gateway, writer)
        taking = asyncio.create_task(everything(reader))
        (connection,) = gateway.connections
        await until(lambda: connection in gateway.bounds.waiting)
        taking.cancel()
