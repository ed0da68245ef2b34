"""HTTP/1.1 and server-sent events to a unix socket on a node, over a connection's streams.

httpcore does the HTTP; a stream is an SSH channel or a local socket. Each request opens a stream of its own: that costs
less than a millisecond, and nothing has to be known about idle ones.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpcore

from rbee.connection import Connection, Stream
from rbee.errors import ConnectError, NodeError
from rbee_remote.protocol import ErrorCode, RemoteError

#: No answer of a hive or worker that is not a stream comes near this many bytes.
MAX_BODY = 16 * 2**20
#: Hives and workers send a comment line every few seconds while a stream has nothing to say.
STREAM_SILENCE_S = 30.0
#: Opening a stream takes a round trip, or the start of a small process.
CONNECT_TIMEOUT_S = 10.0


class HungUpError(NodeError):
    """WORKER_GONE, perhaps: the stream ended before the answer did. Its server has died, or the way to it has."""

    def __init__(self, what: str) -> None:
        super().__init__(ErrorCode.WORKER_GONE, f"the process that served {what} hung up")


class SilenceError(ConnectError):
    """CONNECTION_TIMEOUT: nothing came for as long as was waited. The process on the node hangs, or the network."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(
            ErrorCode.CONNECTION_TIMEOUT,
            f"no answer to {what} for {seconds:g} s",
            hint="the process on the node hangs or the network stalls; see `rbee logs NODE`",
        )


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event. data: the decoded JSON value."""

    event: str
    data: Any
    id: str = ""


class SocketHttp:
    """Requests to whoever listens on one unix socket of a node."""

    def __init__(self, connection: Connection, socket: str, headers: dict[str, str]) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            uds=socket, network_backend=_Backend(connection), max_keepalive_connections=0
        )
        self._headers = [(b"Host", b"rbee"), *((key.encode(), value.encode()) for key, value in headers.items())]

    async def request(self, method: str, path: str, body: Any = None, *, timeout: float = 30.0) -> Any:
        """The JSON value of the answer, None for an empty one.

        timeout: seconds of silence after which the peer is taken for hung.
        Raises NodeError for the peer's own error, WORKER_GONE when nobody listens, HungUpError, ConnectError.
        """
        async with self._open(method, path, body, timeout, {}) as response:
            content = await _read(response)
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise NodeError(ErrorCode.INTERNAL, f"the answer to {method} {path} is no JSON") from error

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
        content = None if body is None else json.dumps(body).encode()
        headers = [*self._headers, *((key.encode(), value.encode()) for key, value in more_headers.items())]
        headers += [(b"Content-Type", b"application/json")] if content else []
        extensions = {
            "timeout": {"connect": min(CONNECT_TIMEOUT_S, timeout), "read": timeout, "write": timeout, "pool": None}
        }
        try:
            async with self._pool.stream(
                method, f"http://rbee{path}", headers=headers, content=content, extensions=extensions
            ) as response:
                if response.status >= 400:
                    raise NodeError.from_remote(RemoteError.decode(_loads_or_none(await _read(response))))
                yield response
        except httpcore.TimeoutException as error:
            raise SilenceError(f"{method} {path}", timeout) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise HungUpError(f"{method} {path}") from error


async def parse_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events from the pieces of a body, however it is cut (WHATWG HTML, 9.2.6).

    Raises NodeError INTERNAL for data that is no JSON or a line without an end.
    """
    buffer = b""
    lines: list[str] = []
    size = 0
    async for chunk in chunks:
        buffer += chunk
        *complete, buffer = buffer.split(b"\n")
        for raw in complete:
            line = raw.rstrip(b"\r").decode("utf-8", "replace")
            if line:
                lines.append(line)
                size += len(raw)
                continue
            event = _event(lines)
            lines, size = [], 0
            if event:
                yield event
        if size + len(buffer) > MAX_BODY:
            raise NodeError(ErrorCode.INTERNAL, "the node sent an event without an end")


def _event(lines: Iterable[str]) -> ServerSentEvent | None:
    fields = {"event": "message", "data": "", "id": ""}
    for line in lines:
        name, _, value = line.partition(":")
        if name in fields:
            value = value.removeprefix(" ")
            fields[name] = f"{fields['data']}\n{value}" if name == "data" and fields["data"] else value
    if not fields["data"]:
        return None
    try:
        return ServerSentEvent(fields["event"], json.loads(fields["data"]), fields["id"])
    except (ValueError, RecursionError) as error:
        raise NodeError(ErrorCode.INTERNAL, "the node sent an event that is no JSON") from error


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
            raise NodeError(ErrorCode.INTERNAL, "the node's answer has no end")
    return bytes(content)


def _loads_or_none(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


class _Backend(httpcore.AsyncNetworkBackend):
    """httpcore's way to the network: there is only the one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: object = None,  # noqa: ARG002 - httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                return _NetworkStream(await self._connection.open_stream(path))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout from error


class _NetworkStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                return await self._stream.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout from error

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
