"""One HTTP/1.1 exchange with a socket on a node, handed on as it comes: any status, any headers, the body in pieces.

h11 does the HTTP by itself, without httpcore around it: this is the way of each token that a gateway hands on. A token
costs 14 µs so, and 17 with httpcore; and what came at once is handed on at once, however many chunks it was.

Rules
- Nothing is read that nobody asked for: a reader that stops stops the channel, and with it the worker's writes.
- A stream has a bound of silence, because workers send a comment every three seconds. A whole answer may take minutes
  without a byte: there, whether the worker is heard elsewhere decides.
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
    connection: Connection, to: Listener, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> AsyncIterator[Answer]:
    """The answer, once its head has come. Leaving the context ends the exchange.

    Raises NodeError WORKER_GONE where nobody listens, USAGE for a request that HTTP cannot say, HungUpError,
    ImpostorError, NonsenseError, SilenceError, ConnectError.
    """
    what = f"{method} {path.partition('?')[0]}"
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    head = _head(http, method, path, {**_end_to_end(headers), **to.headers}, len(body))
    stream = await connected(connection, to.socket, CROWDED_OPEN_S)
    try:
        if to.greeting:
            await hear(to.greeting, stream, what, to.silence_s)
        answer = Answer(http, stream, to, what)
        await answer.ask(head, body)
        yield answer
    finally:
        await stream.aclose()


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _HOP_BY_HOP}


def _head(http: h11.Connection, method: str, path: str, headers: Mapping[str, str], size: int) -> bytes:
    """Raises NodeError USAGE."""
    lines = [("Host", "rbee"), ("Connection", "close"), *headers.items()]
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
    """status, headers: of the head, names in lower case. `chunks` has the body."""

    status: int
    headers: Mapping[str, str]

    def __init__(self, http: h11.Connection, stream: Stream, to: Listener, what: str) -> None:
        self._http = http
        self._stream = stream
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
                    return await self._stream.read(_CHUNK)
            except TimeoutError as error:
                if self._is_stream or self._to.is_silent():
                    raise SilenceError(self._what, self._to.silence_s) from error

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._to.silence_s):
                await self._stream.write(data)
        except TimeoutError as error:
            raise SilenceError(self._what, self._to.silence_s) from error
