"""A connection that can be made anew in its place, for what is to survive the loss of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rbee.base.events import Emit
from rbee.transport.connection import Completed, Connection, ConnectTimings, OnBytes, Stream, Transport

Opener = Callable[[Emit], AbstractAsyncContextManager[Connection]]


class Link:
    """A `Connection` to one node: whoever holds it goes on with the next one after `reopen`.

    node: its name. opener: opens a connection and closes it at the end; the Emit hears how that goes.
    is_open: False once it was closed and could not be opened again.
    Used as `async with Link(…) as link`; there is never more than one connection open, and none at the end.
    """

    def __init__(self, node: str, opener: Opener, emit: Emit) -> None:
        self.node = node
        self._opener = opener
        self._emit = emit
        self._held = AsyncExitStack()
        self._connection: Connection | None = None
        self.is_open = False

    async def __aenter__(self) -> Self:
        """Raises as `reach.open_connection`."""
        self._connection = await self._held.enter_async_context(self._opener(self._emit))
        self.is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def reopen(self) -> None:
        """Close what is there and open another; what was learned of the way stays. Its tries are not reported.

        Raises as `reach.open_connection`; the link is then as good as lost until it is opened once more.
        """
        before = self._current
        self.is_open = False
        await self._held.aclose()
        self._connection = await self._held.enter_async_context(self._opener(_silent))
        self.is_open = True
        self._connection.transport, self._connection.pipe_command = before.transport, before.pipe_command

    @property
    def _current(self) -> Connection:
        assert self._connection is not None, "the link is used inside `async with`"
        return self._connection

    # --- as `Connection` ------------------------------------------------------------------------------------

    @property
    def timings(self) -> ConnectTimings:
        return self._current.timings

    @timings.setter
    def timings(self, timings: ConnectTimings) -> None:
        self._current.timings = timings

    @property
    def transport(self) -> Transport:
        return self._current.transport

    @transport.setter
    def transport(self, transport: Transport) -> None:
        self._current.transport = transport

    @property
    def pipe_command(self) -> tuple[str, ...] | None:
        return self._current.pipe_command

    @pipe_command.setter
    def pipe_command(self, command: tuple[str, ...] | None) -> None:
        self._current.pipe_command = command

    async def run(self, script: str, *, timeout: float = 60.0) -> Completed:
        return await self._current.run(script, timeout=timeout)

    def stream_script(self, script: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._current.stream_script(script)

    async def put(
        self, source: Path | bytes, target: str, *, sha256: str, mode: int = 0o600, on_bytes: OnBytes | None = None
    ) -> None:
        await self._current.put(source, target, sha256=sha256, mode=mode, on_bytes=on_bytes)

    async def open_stream(self, socket: str) -> Stream:
        return await self._current.open_stream(socket)


def _silent(_: object) -> None:
    """Who reopens says so in words of its own."""
