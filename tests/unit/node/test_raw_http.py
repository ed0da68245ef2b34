"""One exchange with a worker, byte by byte: what it says is handed on as it is, and what it does not say ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.node.raw_http import KeptStreams, Listener, exchange
from rbee.node.socket_http import HungUpError, ImpostorError, NonsenseError, SilenceError
from rbee.transport.connection import Stream
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection

SOCKET = "/w/1.keeper"
GREETING = b"rbee 5555\n"
OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Worker:
    """Greets, reads one request, and sends these pieces; `then` is awaited before it hangs up."""

    def __init__(self, *pieces: bytes, greeting: bytes = GREETING) -> None:
        self.request = b""
        self.ended = asyncio.Event()
        self.hold = asyncio.Event()
        self.hold.set()
        self._pieces = pieces
        self._greeting = greeting

    async def __call__(self, stream: Stream) -> None:
        await stream.write(self._greeting)
        while b"\r\n\r\n" not in self.request and (data := await stream.read(2**20)):
            self.request += data
        for piece in self._pieces:
            await stream.write(piece)
        await self.hold.wait()
        self.ended.set()


def listener(is_silent: Callable[[], bool] = lambda: False, silence_s: float = 30.0) -> Listener:
    return Listener(SOCKET, GREETING, {"X-Rbee-Worker": "w1"}, is_silent, silence_s)


async def ask(worker: Worker, to: Listener | None = None, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    async with FakeConnection() as connection:
        connection.listen(SOCKET, worker)
        async with exchange(connection, to or listener(), "POST", "/v1/x?a=b", headers or {}, b"{}") as answer:
            return answer.status, b"".join([chunk async for chunk in answer.chunks()])


async def test_an_answer_of_any_status_is_an_answer() -> None:
    worker = Worker(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nX-More: yes\r\n\r\ngone")
    assert await ask(worker) == (404, b"gone")


async def test_the_request_is_the_clients_but_for_what_belongs_to_one_connection() -> None:
    worker = Worker(OK + b"Content-Length: 0\r\n\r\n")
    asked = {"content-type": "application/json", "host": "evil", "connection": "upgrade", "X-Rbee-Worker": "another"}
    await ask(worker, headers=asked)
    head = worker.request.partition(b"\r\n\r\n")[0].decode().lower().splitlines()
    assert head[0] == "post /v1/x?a=b http/1.1"
    assert sorted(head[1:]) == [
        "content-length: 2",
        "content-type: application/json",
        "host: rbee",
        "x-rbee-worker: w1",
    ]


async def test_what_came_at_once_is_one_piece() -> None:
    worker = Worker(STREAM + b"3\r\nabc\r\n2\r\nde\r\n", b"1\r\nf\r\n0\r\n\r\n")
    async with FakeConnection() as connection:
        connection.listen(SOCKET, worker)
        async with exchange(connection, listener(), "POST", "/", {}, b"{}") as answer:
            assert [chunk async for chunk in answer.chunks()] in ([b"abcdef"], [b"abcde", b"f"])


async def test_interim_answers_are_passed_over_and_have_a_bound() -> None:
    assert await ask(Worker(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok")) == (200, b"ok")
    with pytest.raises(NonsenseError):
        await ask(Worker(b"HTTP/1.1 100 Continue\r\n\r\n" * 50))


@pytest.mark.parametrize("cut", [b"", OK, STREAM + b"3\r\nab", OK + b"Content-Length: 9\r\n\r\nhalf"])
async def test_an_answer_that_is_cut_off_is_a_hang_up(cut: bytes) -> None:
    with pytest.raises(HungUpError):
        await ask(Worker(cut))


@pytest.mark.parametrize("said", [b"SSH-2.0-OpenSSH\r\n\r\n", STREAM + b"zz\r\n", OK + b"X: " + b"y" * 2**17])
async def test_what_is_no_http_makes_no_sense(said: bytes) -> None:
    worker = Worker(said)
    worker.hold.clear()
    with pytest.raises(NonsenseError):
        await ask(worker)


async def test_nothing_is_told_to_an_impostor() -> None:
    worker = Worker(greeting=b"rbee 0000\n")
    with pytest.raises(ImpostorError):
        await ask(worker)
    assert worker.request == b""


async def test_a_silent_stream_is_given_up() -> None:
    worker = Worker(STREAM)
    worker.hold.clear()
    with pytest.raises(SilenceError):
        await ask(worker, listener(silence_s=0.02))


async def test_a_whole_answer_is_waited_for_while_its_worker_is_heard_elsewhere() -> None:
    worker, asked = Worker(), 0
    worker.hold.clear()

    def is_silent() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    with pytest.raises(SilenceError):
        await ask(worker, listener(is_silent, silence_s=0.02))
    assert asked == 3


async def test_leaving_ends_the_exchange() -> None:
    closed = asyncio.Event()

    async def serve(stream: Stream) -> None:
        await stream.write(GREETING + STREAM + b"1\r\na\r\n")
        while await stream.read(2**16):
            pass
        closed.set()

    async with FakeConnection() as connection:
        connection.listen(SOCKET, serve)
        async with exchange(connection, listener(), "POST", "/", {}, b"{}") as answer:
            assert await anext(answer.chunks()) == b"a"
        await closed.wait()


async def test_where_nobody_listens_the_worker_is_gone() -> None:
    async with FakeConnection() as connection:
        with pytest.raises(NodeError) as caught:
            async with exchange(connection, listener(), "GET", "/", {}, b""):
                pass
    assert caught.value.code is ErrorCode.WORKER_GONE


async def test_a_lost_connection_is_told_as_one() -> None:
    connection = FakeConnection()
    connection.lost = True
    with pytest.raises(ConnectError):
        async with exchange(connection, listener(), "GET", "/", {}, b""):
            pass


@pytest.mark.parametrize(("path", "headers"), [("/a b", {}), ("/a", {"x": "a\r\nb: c"}), ("/a", {"x": "\u20ac"})])
async def test_what_http_cannot_say_is_refused(path: str, headers: dict[str, str]) -> None:
    with pytest.raises(NodeError) as caught:
        async with exchange(FakeConnection(), listener(), "GET", path, headers, b""):
            pass
    assert caught.value.code is ErrorCode.USAGE


class Polite:
    """Answers one request after the other on each stream, `most` on each, then hangs up. opened: streams."""

    def __init__(self, most: int = 100, last: bytes = b"") -> None:
        self.opened = 0
        self.heard: list[bytes] = []
        self._most = most
        self._last = last

    async def __call__(self, stream: Stream) -> None:
        self.opened += 1
        await stream.write(GREETING)
        for _ in range(self._most):
            request = b""
            while not request.endswith(b"{}"):
                if not (data := await stream.read(2**16)):
                    return
                request += data
            self.heard.append(request)
            await stream.write(OK + b"Content-Length: 2\r\n\r\nok" + self._last)


async def ask_again(connection: FakeConnection, kept: KeptStreams) -> bytes:
    async with exchange(connection, listener(), "POST", "/v1/x", {}, b"{}", kept) as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def test_a_stream_whose_answer_was_read_is_used_again() -> None:
    worker, kept = Polite(), KeptStreams()
    async with FakeConnection() as connection:
        connection.listen(SOCKET, worker)
        assert [await ask_again(connection, kept) for _ in range(3)] == [b"ok"] * 3
        assert await asyncio.gather(*(ask_again(connection, kept) for _ in range(4))) == [b"ok"] * 4
        await kept.aclose()
    assert (worker.opened, len(worker.heard)) == (4, 7)


async def test_a_kept_stream_that_has_ended_is_replaced_and_nobody_hears_of_it() -> None:
    worker, kept = Polite(most=1), KeptStreams()
    async with FakeConnection() as connection:
        connection.listen(SOCKET, worker)
        assert [await ask_again(connection, kept) for _ in range(3)] == [b"ok"] * 3
        connection.stop_listening(SOCKET)
        with pytest.raises(NodeError) as caught:
            await ask_again(connection, kept)
        await kept.aclose()
    assert (worker.opened, caught.value.code) == (3, ErrorCode.WORKER_GONE)


async def test_a_stream_on_which_more_came_than_the_answer_is_not_used_again() -> None:
    worker, kept = Polite(last=b"HTTP/1.1 200 OK\r\n"), KeptStreams()
    async with FakeConnection() as connection:
        connection.listen(SOCKET, worker)
        assert [await ask_again(connection, kept) for _ in range(2)] == [b"ok"] * 2
        await kept.aclose()
    assert worker.opened == 2


async def test_few_streams_are_kept_and_none_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.node.raw_http.MOST_KEPT", 2)
    monkeypatch.setattr("rbee.node.raw_http.KEPT_S", 0.01)
    closed = asyncio.Semaphore(0)

    async def serve(stream: Stream) -> None:
        await worker(stream)
        closed.release()

    worker, kept = Polite(), KeptStreams()
    async with FakeConnection() as connection:
        connection.listen(SOCKET, serve)
        await asyncio.gather(*(ask_again(connection, kept) for _ in range(3)))
        for _ in range(3):
            await closed.acquire()
        assert kept.take(SOCKET) is None
