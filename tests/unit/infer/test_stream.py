"""What is believed of a worker that is asked for the rest of an answer. The other side is written out, byte by byte."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import pytest

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Emit, Event
from rbee.infer.stream import Explain, Patience, answer_events
from rbee.infer.worker_status import HiveReport
from rbee.node.answers import Generated
from rbee.node.hive_client import WorkerClient
from rbee.transport.connection import Connection, SocketAccess, Stream
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import (
    Done,
    ErrorCode,
    GenerateRequest,
    RemoteError,
    Started,
    TokenEvent,
    Usage,
    WorkerInfo,
    WorkerState,
    WorkerTimings,
    encode,
)
from tests.doubles.connection import FakeConnection

HASTY = Patience(silence_s=0.5, outage_s=0.3, pause_s=0.01)
STARTED = Started(3, 10, 1)
DONE = Done("stop", Usage(3, 2), WorkerTimings(0.0, 0.0, 0.0))
A, B = TokenEvent("a", 1), TokenEvent("b", 2)
NAMES = {Started: "started", TokenEvent: "token", Done: "done"}


def sse(first: int, *events: Generated) -> bytes:
    """A response with these events, numbered from `first`, which then hangs up."""
    lines = [
        f"event: {NAMES[type(event)]}\nid: {number}\ndata: {json.dumps(encode(event))}\n\n"
        for number, event in enumerate(events, start=first)
    ]
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return (head + "".join(lines)).encode()


def refusal(status: int, error: ErrorCode | RemoteError) -> bytes:
    body = json.dumps((error if isinstance(error, RemoteError) else RemoteError(error, "no")).encode())
    return f"HTTP/1.1 {status} No\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


class Node:
    """Answers each request with the next of `responses`, the last one again and again; None has nobody listen."""

    def __init__(self, *responses: bytes | None) -> None:
        self.requests: list[tuple[str, str]] = []
        self._responses = responses
        self._hangs = False

    def held_open(self) -> Self:
        """The last response has no end: its stream stays open."""
        self._hangs = True
        return self

    @asynccontextmanager
    async def __call__(self, _: SocketAccess, __: Emit) -> AsyncIterator[Connection]:
        async with FakeConnection() as connection:
            connection.listen("/w.sock", self._serve(connection))
            yield connection

    def _serve(self, connection: FakeConnection) -> Any:
        async def serve(stream: Stream) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.read(65536)
            line, *headers = head.decode().split("\r\n")
            told = dict(header.split(": ", 1) for header in headers if ": " in header)
            self.requests.append((line.split()[0], told.get("Last-Event-ID", "")))
            number = min(len(self.requests), len(self._responses))
            response = self._responses[number - 1]
            if number < len(self._responses) and self._responses[number] is None:
                connection.stop_listening("/w.sock")
            assert response is not None
            await stream.write(response)
            if self._hangs and number == len(self._responses):
                await asyncio.sleep(60)

        return serve


async def nothing_known() -> HiveReport:
    return HiveReport(reached=False)


def report(state: WorkerState, error: dict[str, str] | None = None) -> Explain:
    """What a hive that answers says of the worker."""
    info = WorkerInfo(
        id="a" * 16,
        model="m",
        state=state,
        backend="cpu",
        device="cpu",
        socket="/w.sock",
        pid=1,
        start_ticks=1,
        boot_id="b",
        ctx=512,
        slots=1,
        slots_free=0,
        keep_alive_s=60.0,
        created_at=0.0,
        error=error,
    )

    async def explain() -> HiveReport:
        return HiveReport(True, info)

    return explain


async def heard(node: Node, explain: Explain = nothing_known) -> list[Generated]:
    """The whole answer, as it comes out. Raises what ends it."""
    events: list[Generated] = []
    async with ReconnectingConnection("gpu1", node, list[Event]().append) as connection:
        client = WorkerClient(connection, "/w.sock", worker_id="a" * 16, keeper_id="k1")
        request = GenerateRequest("0" * 32, prompt="x")
        stream = answer_events(
            client,
            request,
            connection=connection,
            explain=explain,
            deadline=Deadline(),
            emit=list[Event]().append,
            patience=HASTY,
        )
        async with aclosing(stream):
            async for event in stream:
                events.append(event)  # noqa: PERF401 - those before an error count, too
    return events


async def test_the_rest_is_asked_for_by_the_last_number() -> None:
    node = Node(sse(1, STARTED, A), sse(3, B), sse(4, DONE))
    assert await heard(node) == [STARTED, A, B, DONE]
    assert node.requests == [("POST", ""), ("GET", "2"), ("GET", "3")]


async def test_the_request_is_sent_again_while_nothing_was_heard() -> None:
    node = Node(sse(1), b"", sse(1, STARTED, A, DONE))
    assert await heard(node) == [STARTED, A, DONE]
    assert node.requests == [("POST", "")] * 3


@pytest.mark.parametrize("again", [sse(2, A, B, DONE), sse(4, DONE)], ids=["told twice", "left out"])
async def test_events_out_of_order_are_refused_and_not_shown(again: bytes) -> None:
    with pytest.raises(NodeError, match="after event") as caught:
        await heard(Node(sse(1, STARTED, A), again))
    assert caught.value.code is ErrorCode.INVALID_RESPONSE


async def test_an_answer_that_the_worker_has_forgotten_is_lost() -> None:
    with pytest.raises(ConnectError, match="forgotten") as caught:
        await heard(Node(sse(1, STARTED, A), refusal(404, ErrorCode.REQUEST_GONE)))
    assert caught.value.code is ErrorCode.CONNECTION_LOST


@pytest.mark.parametrize("gone", [None, refusal(410, ErrorCode.WORKER_GONE)], ids=["nobody listens", "another worker"])
async def test_a_worker_that_is_gone_is_asked_once(gone: bytes | None) -> None:
    node = Node(sse(1, STARTED, A), gone)
    with pytest.raises(NodeError) as caught:
        await heard(node)
    assert caught.value.code is ErrorCode.WORKER_GONE
    assert len(node.requests) <= 2


async def test_a_worker_that_hangs_up_again_and_again_is_given_up() -> None:
    node = Node(sse(1, STARTED, A), sse(3))
    with pytest.raises(NodeError) as caught:
        await heard(node)
    assert caught.value.code is ErrorCode.WORKER_GONE
    assert 2 < len(node.requests) < 20


async def test_a_busy_worker_says_so_at_once() -> None:
    node = Node(refusal(503, ErrorCode.ALL_SLOTS_BUSY))
    with pytest.raises(NodeError) as caught:
        await heard(node)
    assert caught.value.code is ErrorCode.ALL_SLOTS_BUSY
    assert len(node.requests) == 1


async def test_a_silent_worker_that_its_hive_gave_up_is_not_waited_for() -> None:
    """Its process may hang for as long as it likes: the connection is good, and the hive says what became of it."""
    node = Node(sse(1, STARTED, A), b"HTTP/1.1 200 OK\r\n")
    stopped = report(WorkerState.STOPPING, {"code": "WORKER_CRASHED", "message": "the worker was stopped"})
    with pytest.raises(NodeError, match="does not answer any more") as caught:
        await heard(node.held_open(), stopped)
    assert caught.value.code is ErrorCode.WORKER_GONE
    assert len(node.requests) == 2


async def test_a_silent_worker_that_its_hive_finds_well_is_waited_for_and_then_given_up() -> None:
    node = Node(sse(1, STARTED, A), b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(NodeError, match=r"silent for 0\.3 s, although the node answers") as caught:
        await heard(node.held_open(), report(WorkerState.BUSY))
    assert caught.value.code is ErrorCode.WORKER_CRASHED
    assert caught.value.exit_status == 8
