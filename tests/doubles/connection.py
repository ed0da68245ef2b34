"""A connection without a node, for tests: scripted answers, files in memory, sockets that are functions.

    connection = FakeConnection()
    connection.answer(r"uname", b"Linux\\n")                       # the first pattern found in a script answers it
    connection.listen("/run/hive.sock", serve)                    # async def serve(stream: Stream) -> None
    async with connection: ...

Afterwards `connection.scripts` holds what was run and `connection.files` what was put.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from rbee.base.errors import ConnectError, NodeError
from rbee.transport.connection import Completed, ConnectTimings, OnBytes, SocketAccess, Stream
from rbee_remote.protocol import ErrorCode

#: Serves one stream: reads what the keeper wrote, writes what the keeper is to read.
Handler = Callable[[Stream], Awaitable[None]]

#: What becomes of a script: its stdout with status 0, its whole result, an error, or a function of the script.
Answer = bytes | Completed | Exception | Callable[[str], Completed]


@dataclass(frozen=True, slots=True)
class FakeFile:
    """A file that was put. mode: permission bits."""

    content: bytes
    mode: int


@dataclass(slots=True)
class FakeConnection:
    """A `Connection` that a test writes the other side of."""

    timings: ConnectTimings = field(default_factory=lambda: ConnectTimings(0.0, 0.0))
    access: SocketAccess = field(default_factory=SocketAccess)
    scripts: list[str] = field(default_factory=list)
    files: dict[str, FakeFile] = field(default_factory=dict)
    lost: bool = False
    _answers: list[tuple[re.Pattern[str], Answer]] = field(default_factory=list)
    _handlers: dict[str, Handler] = field(default_factory=dict)
    _serving: set[asyncio.Task[None]] = field(default_factory=set)
    _streams: list[MemoryStream] = field(default_factory=list)
    _lost: asyncio.Event = field(default_factory=asyncio.Event)

    def answer(self, pattern: str, answer: Answer) -> None:
        """Answer every script in which the regular expression is found. Of several, the one given first wins."""
        self._answers.append((re.compile(pattern, re.DOTALL), answer))

    def listen(self, socket: str, handler: Handler) -> None:
        """Serve each stream to `socket` with `handler`, in a task of its own."""
        self._handlers[socket] = handler

    def stop_listening(self, socket: str) -> None:
        """Nobody listens at `socket` from here on; streams that are open stay."""
        self._handlers.pop(socket, None)

    def use_pipe(self, command: tuple[str, ...]) -> None:
        self.access = replace(self.access, pipe_command=command)

    def try_forwarding(self) -> None:
        self.access = replace(self.access, transport="forward")

    @property
    def is_closed(self) -> bool:
        return self.lost

    async def is_alive(self, within_s: float) -> bool:
        return not self.lost

    async def run(self, script: str, *, timeout: float = 60.0) -> Completed:
        self._check_alive()
        self.scripts.append(script)
        answer = next((answer for pattern, answer in self._answers if pattern.search(script)), None)
        match answer:
            case None:
                raise AssertionError(f"no answer was given for this script:\n{script}")
            case bytes():
                return Completed(answer, "", 0)
            case Completed():
                return answer
            case Exception():
                raise answer
            case _:
                return answer(script)

    @asynccontextmanager
    async def stream_script(self, script: str) -> AsyncIterator[AsyncIterator[bytes]]:
        completed = await self.run(script)

        async def lines() -> AsyncIterator[bytes]:
            for line in completed.stdout.splitlines():
                yield line

        yield lines()

    async def put(
        self, source: Path | bytes, target: str, *, sha256: str, mode: int = 0o600, on_bytes: OnBytes | None = None
    ) -> None:
        self._check_alive()
        content = source if isinstance(source, bytes) else await asyncio.to_thread(source.read_bytes)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise NodeError(ErrorCode.BOOTSTRAP_FAILED, f"{target} arrived with another SHA-256 than it should have")
        self.files[target] = FakeFile(content, mode)
        if on_bytes is not None:
            on_bytes(len(content), len(content))

    async def open_stream(self, socket: str) -> Stream:
        self._check_alive()
        handler = self._handlers.get(socket)
        if handler is None:
            raise NodeError(ErrorCode.WORKER_GONE, f"nobody listens at {socket}")
        ours, theirs = memory_streams()
        self._streams.append(ours)
        task = asyncio.create_task(_serve(handler, theirs), name=f"fake {socket}")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        return ours

    async def until_lost(self, silence_s: float) -> None:
        await self._lost.wait()

    def lose(self) -> None:
        """Break the connection: streams fail, and nothing can be asked any more."""
        self.lost = True
        self._lost.set()
        for stream in self._streams:
            stream.fail(ConnectError(ErrorCode.CONNECTION_LOST, "the connection to the node was lost"))
        self.end_streams()

    def end_streams(self) -> None:
        """Whoever serves streams hangs up."""
        for task in self._serving:
            task.cancel()

    async def aclose(self) -> None:
        """End what serves streams."""
        tasks = list(self._serving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _check_alive(self) -> None:
        if self.lost:
            raise ConnectError(ErrorCode.CONNECTION_LOST, "the connection to the node was lost")


async def _serve(handler: Handler, stream: Stream) -> None:
    try:
        await handler(stream)
    finally:
        await stream.aclose()


class MemoryStream:
    """One end of a pair: what is written to it is read from the other. Its buffer has no bound."""

    def __init__(self) -> None:
        self._incoming = asyncio.StreamReader()
        self._peer: MemoryStream | None = None

    async def read(self, max_bytes: int) -> bytes:
        return await self._incoming.read(max_bytes)

    async def write(self, data: bytes) -> None:
        peer = self._peer
        if peer is None or peer._peer is None:
            raise ConnectError(ErrorCode.CONNECTION_LOST, "the other end of the stream is closed")
        peer._incoming.feed_data(data)

    def fail(self, error: Exception) -> None:
        """Whoever reads what comes next has this instead."""
        self._incoming.set_exception(error)

    async def aclose(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            peer._incoming.feed_eof()
            self._incoming.feed_eof()


def memory_streams() -> tuple[MemoryStream, MemoryStream]:
    """Two connected ends."""
    left, right = MemoryStream(), MemoryStream()
    left._peer, right._peer = right, left
    return left, right
