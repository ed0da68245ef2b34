"""A connection that can be made anew in its place, for what is to survive the loss of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rbee.base.events import Emit, silent
from rbee.transport.connection import Completed, Connection, ConnectTimings, OnBytes, SocketAccess, Stream

#: Opens a connection with what is known of its sockets and closes it at the end; the Emit hears how that goes.
Opener = Callable[[SocketAccess, Emit], AbstractAsyncContextManager[Connection]]


class ReconnectingConnection:
    """A `Connection` to one node: whoever holds it goes on with the next one after `reopen`.

    node: its name. access: what worked last time. is_open: False once it was closed and could not be opened again.
    Used as `async with ReconnectingConnection(…) as connection`: never more than one is open, and none at the end.
    """

    def __init__(self, node: str, opener: Opener, emit: Emit, access: SocketAccess = SocketAccess()) -> None:  # noqa: B008 - it is frozen
        self.node = node
        self._opener = opener
        self._emit = emit
        self._first_access = access
        self._held = AsyncExitStack()
        self._connection: Connection | None = None
        self.is_open = False

    async def __aenter__(self) -> Self:
        """Raises as `open_connection`."""
        await self._open(self._first_access, self._emit)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def reopen(self, emit: Emit = silent) -> None:
        """Close what is there and open another, with what was learned about sockets. emit: is told of its tries; who
        says in words of its own that it reopens leaves that out.

        Raises as `open_connection`; the connection is then as good as lost until it is opened once more.
        """
        self.is_open = False
        await self._held.aclose()
        await self._open(self.access, emit)

    async def _open(self, access: SocketAccess, emit: Emit) -> None:
        self._connection = await self._held.enter_async_context(self._opener(access, emit))
        self.is_open = True

    @property
    def _current(self) -> Connection:
        assert self._connection is not None, "it is used inside `async with`"
        return self._connection

    # --- as `Connection` ------------------------------------------------------------------------------------

    @property
    def timings(self) -> ConnectTimings:
        return self._current.timings

    @property
    def access(self) -> SocketAccess:
        return self._current.access

    def use_pipe(self, command: tuple[str, ...]) -> None:
        self._current.use_pipe(command)

    def try_forwarding(self) -> None:
        self._current.try_forwarding()

    @property
    def is_closed(self) -> bool:
        return self._current.is_closed

    async def is_alive(self, within_s: float) -> bool:
        return await self._current.is_alive(within_s)

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

    async def until_lost(self, silence_s: float) -> None:
        await self._current.until_lost(silence_s)
