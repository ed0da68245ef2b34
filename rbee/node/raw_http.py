"""One HTTP/1.1 exchange with a socket on a node, handed on as it comes: any status, any headers, the body in pieces.

h11 does the HTTP by itself, without httpcore around it: this is the way of each token that a gateway hands on. A token
costs 14 µs so, and 17 with httpcore; and what came at once is handed on at once, however many chunks it was.

Rules
- Nothing is read that nobody asked for: a reader that stops stops the channel, and with it the worker's writes.
- A stream has a bound of silence, because workers send a comment every three seconds. A whole answer may take minutes
  without a byte: there, whether the worker is heard elsewhere decides.
- A stream whose answer was read to its end serves the next request. Where it turns out to have ended before a head
  came, the request is sent again over a new one, as it would be to another worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11

from rbee.base.errors import ConnectError, NodeError
from rbee.base.retries import ANSWER_SILENCE_S, CROWDED_OPEN_S
from rbee.node.socket_http import HungUpError, NonsenseError, SilenceError, connected, hear
from rbee.transport.connection import Connection, Stream
from rbee_remote.protocol import ErrorCode

_Next = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]

_CHUNK = 2**16
#: Bytes of an answer's head.
_MAX_HEAD = 2**16
#: Streams without a request that are kept, and seconds for which one is: a worker ends it after five.
MOST_KEPT, KEPT_S = 16, 4.0
#: Answers of the kind "100 Continue" before the one that counts.
_MOST_INTERIM = 16
#: Of one connection alone, and made here.
_HOP_BY_HOP = {
    "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listener:
    """Who is asked. greeting: as of `SocketHttp`. headers: in place of those of the same names that a request has.

    is_silent: whether nothing is heard of it where else it is listened to. silence_s: seconds.
    """

    socket: str
    greeting: bytes
    headers: Mapping[str, str]
    is_silent: Callable[[], bool]
    silence_s: float = ANSWER_SILENCE_S


@asynccontextmanager
async def exchange(
    connection: Connection,
    to: Listener,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    kept: KeptStreams | None = None,
) -> AsyncIterator[Answer]:
    """The answer, once its head has come. Leaving the context ends the exchange. kept: has streams of this connection
    that can be used again, and gets this one if the answer was read to its end.

    Raises NodeError WORKER_GONE where nobody listens, USAGE for a request that HTTP cannot say, HungUpError,
    ImpostorError, NonsenseError, SilenceError, ConnectError.
    """
    asked = _Asked(method, path, {**_end_to_end(headers), **to.headers}, body)
    answer = await _again(kept, to, asked) or await _anew(connection, to, asked)
    try:
        yield answer
    finally:
        if kept is not None and answer.is_whole:
            kept.keep(to.socket, answer.stream)
        else:
            await answer.stream.aclose()


class KeptStreams:
    """Streams to sockets of one node whose answer was read to its end: the next request need not wait for one to be
    opened, which is two round trips and three messages for sshd."""

    def __init__(self) -> None:
        self._idle: list[tuple[float, str, Stream]] = []  # the one that has been so for the longest first
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def take(self, socket: str) -> Stream | None:
        """The one that was used last."""
        for place in reversed(range(len(self._idle))):
            if self._idle[place][1] == socket:
                return self._idle.pop(place)[2]
        return None

    def keep(self, socket: str, stream: Stream) -> None:
        now = asyncio.get_running_loop().time()
        self._idle.append((now, socket, stream))
        if len(self._idle) > MOST_KEPT:
            self._close(self._idle.pop(0)[2])
        self._watch(now)

    async def aclose(self) -> None:
        """Close those that nobody uses."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self._close(self._idle.pop()[2])
        await asyncio.gather(*self._closing)

    def _watch(self, now: float) -> None:
        if self._idle and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._idle[0][0] + KEPT_S - now, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._idle and self._idle[0][0] + KEPT_S <= now:
            self._close(self._idle.pop(0)[2])
        self._watch(now)

    def _close(self, stream: Stream) -> None:
        task = asyncio.create_task(stream.aclose(), name="close a stream that was kept")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


@dataclass(frozen=True, slots=True)
class _Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def what(self) -> str:
        return f"{self.method} {self.path.partition('?')[0]}"

    def begun(self) -> tuple[h11.Connection, bytes]:
        """With the request's head. Raises NodeError USAGE."""
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        return http, _head(http, self.method, self.path, self.headers, len(self.body))


async def _again(kept: KeptStreams | None, to: Listener, asked: _Asked) -> Answer | None:
    """Over a stream that was kept; None where there is none, or its end came first: the worker ends those that wait for
    long. Raises as `exchange`."""
    stream = kept.take(to.socket) if kept is not None else None
    if stream is None:
        return None
    try:
        http, head = asked.begun()
        answer = Answer(http, stream, to, asked.what)
        await answer.ask(head, asked.body)
    except (HungUpError, ConnectError) as error:
        await stream.aclose()
        if isinstance(error, SilenceError):
            raise
        return None
    except BaseException:
        await stream.aclose()
        raise
    return answer


async def _anew(connection: Connection, to: Listener, asked: _Asked) -> Answer:
    http, head = asked.begun()
    stream = await connected(connection, to.socket, CROWDED_OPEN_S)
    answer = Answer(http, stream, to, asked.what)
    try:
        if to.greeting:
            await hear(to.greeting, stream, asked.what, to.silence_s)
        await answer.ask(head, asked.body)
    except BaseException:
        await stream.aclose()
        raise
    return answer


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


def _head(http: h11.Connection, method: str, path: str, headers: Mapping[str, str], size: int) -> bytes:
    """Raises NodeError USAGE."""
    lines = [("Host", "rbee"), *headers.items()]
    if size or method not in ("GET", "HEAD", "DELETE"):
        lines.append(("Content-Length", str(size)))
    try:
        request = h11.Request(
            method=method,
            target=path.encode(),
            headers=[(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines],
        )
        return http.send(request) or b""
    except (h11.LocalProtocolError, UnicodeEncodeError) as error:
        raise NodeError(ErrorCode.USAGE, f"the request cannot be passed on: {error}"[:300]) from error


class Answer:
    """status, headers: of the head, names in lower case. `chunks` has the body. stream: that it comes over."""

    status: int
    headers: Mapping[str, str]

    def __init__(self, http: h11.Connection, stream: Stream, to: Listener, what: str) -> None:
        self._http = http
        self.stream = stream
        self._to = to
        self._what = what
        self._ended = False
        self._is_stream = False

    async def ask(self, head: bytes, body: bytes) -> None:
        """Send the request and wait for the answer's head. Raises as `exchange`."""
        try:
            await self._write(head + body[:_CHUNK])
            for start in range(_CHUNK, len(body), _CHUNK):
                await self._write(body[start : start + _CHUNK])
        except SilenceError:
            raise
        except ConnectError:
            pass  # a worker may refuse a body before it has all of it: then the answer is there to be read
        if body:
            self._http.send_with_data_passthrough(h11.Data(data=body))
        self._http.send(h11.EndOfMessage())
        for _ in range(_MOST_INTERIM):
            event = await self._event()
            if isinstance(event, h11.Response):
                break
        else:
            raise NonsenseError(f"{self._what}: no answer but {_MOST_INTERIM} interim ones")
        self.status = event.status_code
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        self._is_stream = self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def is_whole(self) -> bool:
        """Whether all of it was read, and the stream is as good as a new one."""
        states = (self._http.our_state, self._http.their_state)
        return states == (h11.DONE, h11.DONE) and self._http.trailing_data == (b"", False)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, what has come at once in one piece. Raises HungUpError, NonsenseError, SilenceError,
        ConnectError."""
        while True:
            event: _Next = await self._event()
            pieces: list[bytes] = []
            while isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
                event = self._parsed()
            if pieces:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if isinstance(event, h11.EndOfMessage):
                return

    async def _event(self) -> h11.Event:
        while (event := self._parsed()) is h11.NEED_DATA:
            data = await self._read()
            self._ended = not data
            self._http.receive_data(data)
        if isinstance(event, h11.ConnectionClosed):
            raise HungUpError(self._what)
        assert not isinstance(event, type)  # PAUSED comes after the end of a message, where nobody asks any more
        return event

    def _parsed(self) -> _Next:
        try:
            return self._http.next_event()
        except h11.RemoteProtocolError as error:
            if self._ended:
                raise HungUpError(self._what) from error
            raise NonsenseError(f"{self._what}: {error}"[:300]) from error

    async def _read(self) -> bytes:
        while True:
            try:
                async with asyncio.timeout(self._to.silence_s):
                    return await self.stream.read(_CHUNK)
            except TimeoutError as error:
                if self._is_stream or self._to.is_silent():
                    raise SilenceError(self._what, self._to.silence_s) from error

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._to.silence_s):
                await self.stream.write(data)
        except TimeoutError as error:
            raise SilenceError(self._what, self._to.silence_s) from error
