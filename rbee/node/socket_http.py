"""HTTP/1.1 and server-sent events to a unix socket on a node, over a connection's streams.

httpcore does the HTTP; a stream is an SSH channel or a local socket. Each request opens a stream of its own: that costs
less than a millisecond, and nothing has to be known about idle ones.

Rules
- Anybody may answer: the bytes, the depth and the time of an answer have bounds, whatever it says of itself.
- A peer that ends in mid-answer hung up, one that is silent hangs, and one that says what no hive or worker says makes
  no sense: three errors, because only the first two are worth another try.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpcore

from rbee.base.errors import ConnectError, NodeError
from rbee.base.retries import REQUEST_S, STREAM_OPEN_S, STREAM_SILENCE_S
from rbee.transport.connection import Connection, Stream
from rbee.transport.script import lost
from rbee_remote.protocol import ErrorCode, ProtocolError, RemoteError, parse_json

#: No answer of a hive or worker that is not a stream comes near this many bytes: a worker or a model takes a thousand.
MAX_BODY = 4 * 2**20
#: Nor does one event of a stream; the longest carry an error, or the likeliest tokens.
MAX_EVENT = 2**20

_ORIGIN = httpcore.Origin(b"http", b"rbee", 80)


class HungUpError(NodeError):
    """WORKER_GONE, perhaps: the stream ended before the answer did. Its server has died, or the way to it has."""

    def __init__(self, what: str) -> None:
        super().__init__(ErrorCode.WORKER_GONE, f"the process that served {what} hung up")


class SilenceError(ConnectError):
    """CONNECTION_TIMEOUT: no answer for as long as was waited. The process on the node hangs, or the network."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            ErrorCode.CONNECTION_TIMEOUT,
            f"no answer to {what} for {seconds:g} s",
            hint="the process on the node hangs or the network has stalled: see `rbee logs NODE`; "
            "`rbee hive stop NODE --now` ends a hive that hangs, and its workers",
        )


class ImpostorError(NodeError):
    """WORKER_GONE: somebody listens where the worker did, and does not know its secret. Nothing was told to him."""

    def __init__(self) -> None:
        super().__init__(
            ErrorCode.WORKER_GONE,
            "the process that listens on the worker's socket is not the worker",
            hint="`rbee nodes check NODE` says whether somebody else has its folder for sockets",
        )


class NonsenseError(NodeError):
    """INVALID_RESPONSE: what came is nothing that a hive or worker says. reason: a clause."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            ErrorCode.INVALID_RESPONSE,
            f"the node sent an answer that rbee does not understand: {reason}",
            hint="something else listens there, or a version of rbee that this one does not understand; "
            "`rbee hive stop NODE --now` lets the next command start afresh",
        )


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. data: the decoded JSON value."""

    event: str
    data: Any
    id: str = ""


class SocketHttp:
    """Requests to whoever listens on one unix socket of a node."""

    def __init__(self, connection: Connection, socket: str, headers: dict[str, str], *, greeting: bytes = b"") -> None:
        """greeting: what whoever listens there has to say first. Nothing is sent to one that says anything else."""
        self._connection = connection
        self._socket = socket
        self._greeting = greeting
        self._headers = [(b"Host", b"rbee"), *_encoded(headers)]

    async def request(self, method: str, path: str, body: Any = None, *, timeout: float = REQUEST_S) -> Any:
        """The JSON value of the answer, None for an empty one.

        timeout: seconds for the whole answer, after which the peer is taken for hung.
        Raises NodeError for the peer's own error, WORKER_GONE when nobody listens, HungUpError, NonsenseError,
        ConnectError.
        """
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout), self._open(method, path, body, timeout, {}) as response:
                content = await _read(response)
        except TimeoutError as error:
            raise SilenceError(what, timeout) from error
        return _parsed(content, f"its answer to {what}") if content else None

    @asynccontextmanager
    async def events(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        silence: float = STREAM_SILENCE_S,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[AsyncIterator[ServerSentEvent]]:
        """The events of a stream as they come; an event named `error` is raised as NodeError.

        silence: seconds without a byte after which the peer is taken for hung. Raises as `request`.
        """
        async with self._open(method, path, body, silence, headers or {}) as response:
            yield _raise_errors(parse_events(response.aiter_stream()))

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: Any, timeout: float, more_headers: Mapping[str, str]
    ) -> AsyncIterator[httpcore.Response]:
        """The answer's head has come, its body is to be read. timeout: seconds for the head, then for each piece."""
        content = None if body is None else json.dumps(body).encode()
        headers = [*self._headers, *_encoded(more_headers)]
        headers += (
            [(b"Content-Type", b"application/json"), (b"Content-Length", b"%d" % len(content))] if content else []
        )
        extensions = {"timeout": {"read": timeout, "write": timeout}}
        request = httpcore.Request(
            method, f"http://rbee{path}", headers=headers, content=content, extensions=extensions
        )
        what = f"{method} {path}"
        stream = _NetworkStream(await connected(self._connection, self._socket, min(STREAM_OPEN_S, timeout)))
        try:
            if self._greeting:
                await hear(self._greeting, stream, what, timeout)
            yield await _head(request, stream, what, timeout)
        except httpcore.TimeoutException as error:
            raise SilenceError(what, timeout) from error
        except httpcore.ProtocolError as error:
            raise HungUpError(what) if stream.ended else NonsenseError(f"{what}: {error}"[:300]) from error
        finally:
            await stream.aclose()


async def connected(connection: Connection, socket: str, timeout: float) -> Stream:
    """Opening a stream is up to sshd and the kernel, which do not wait for hive or worker: silence here is the
    connection's. Raises as `Connection.open_stream`."""
    try:
        async with asyncio.timeout(timeout):
            return await connection.open_stream(socket)
    except TimeoutError as error:
        raise lost(f"no stream to {socket} was opened for {timeout:g} s") from error


class Readable(Protocol):
    async def read(self, max_bytes: int) -> bytes: ...


async def hear(greeting: bytes, stream: Readable, what: str, timeout: float) -> None:
    """Raises ImpostorError for another greeting, HungUpError for none, SilenceError."""
    said = b""
    try:
        async with asyncio.timeout(timeout):
            while len(said) < len(greeting) and (data := await stream.read(len(greeting) - len(said))):
                said += data
    except TimeoutError as error:
        raise SilenceError(what, timeout) from error
    if not said:
        raise HungUpError(what)
    if not hmac.compare_digest(said, greeting):
        raise ImpostorError


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(key.encode(), value.encode()) for key, value in headers.items()]


async def _head(request: httpcore.Request, stream: _NetworkStream, what: str, timeout: float) -> httpcore.Response:
    """Send a request and wait for an answer that is none of an error. Raises as `SocketHttp.request`."""
    try:
        # A deadline of its own: each of any number of "100 Continue" would end a silence.
        async with asyncio.timeout(timeout):
            response = await httpcore.AsyncHTTP11Connection(_ORIGIN, stream).handle_async_request(request)
            if response.status >= 400:
                raise NodeError.from_remote(RemoteError.decode(_parsed(await _read(response), "its error")))
    except TimeoutError as error:
        raise SilenceError(what, timeout) from error
    if not 200 <= response.status < 300:
        raise NonsenseError(f"{what}: status {response.status}")
    return response


async def parse_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events from the pieces of a body, however it is cut (WHATWG HTML, 9.2.6).

    Raises NonsenseError for data that is no JSON, for a line or an event without an end.
    """
    begun = bytearray()  # of a line whose end has not come
    fields = _Fields()
    async for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        for piece in complete:
            line = bytes(begun + piece) if begun else piece
            begun.clear()
            if line.rstrip(b"\r"):
                fields.add(line.rstrip(b"\r"))
            elif event := fields.take():
                yield event
        begun += rest
        if fields.size + len(begun) > MAX_EVENT:
            raise NonsenseError("an event without an end")


@dataclass(slots=True)
class _Fields:
    """The lines of one event. size: bytes so far, comments left out: those are what keeps a quiet stream alive."""

    size: int = 0
    _event: str = "message"
    _id: str = ""
    _data: list[str] = field(default_factory=list)

    def add(self, line: bytes) -> None:
        if line.startswith(b":"):
            return
        self.size += len(line)
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "id":
                self._id = value
            case "data":
                self._data.append(value)

    def take(self) -> ServerSentEvent | None:
        """The event, None where there is no data; begins anew."""
        event, number, data = self._event, self._id, "\n".join(self._data)
        self.size, self._event, self._id = 0, "message", ""
        self._data.clear()
        return ServerSentEvent(event, _parsed(data, "an event"), number) if data else None


async def _raise_errors(events: AsyncIterator[ServerSentEvent]) -> AsyncIterator[ServerSentEvent]:
    async for event in events:
        if event.event == "error":
            raise NodeError.from_remote(RemoteError.decode(event.data))
        yield event


async def _read(response: httpcore.Response) -> bytes:
    content = bytearray()
    async for piece in response.aiter_stream():
        content += piece
        if len(content) > MAX_BODY:
            raise NonsenseError("an answer without an end")
    return bytes(content)


def _parsed(text: bytes | str, what: str) -> Any:
    try:
        return parse_json(text)
    except ProtocolError as error:
        raise NonsenseError(f"{what} is {error}") from error


class _NetworkStream(httpcore.AsyncNetworkStream):
    """A connection's stream as httpcore reads it. ended: nothing more comes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.ended = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                data = await self._stream.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error
        self.ended = not data
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._stream.write(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:  # noqa: ARG002 - httpcore's signature
        return None
