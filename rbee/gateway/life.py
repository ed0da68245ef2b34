"""The gateway's life, from the first request to its end by signals.

Rules
- The first SIGTERM or SIGINT drains: requests that come are refused (503), running ones have DRAIN_S. The second ends
  at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from rbee import audit
from rbee.base.errors import RbeeError
from rbee.base.events import Notice
from rbee.context import Context
from rbee.gateway.access.entrance import Entrance
from rbee_remote.protocol import ErrorCode
from rbee_remote.serving.socket_server import Bounds, SocketServer

_log = logging.getLogger(__name__)

#: Seconds that running requests have once the gateway is told to end.
DRAIN_S = 30.0
#: Seconds for connections to close once nothing runs.
_GRACE_S = 1


class DrainableApp(Protocol):
    """draining: set to True, it refuses what comes (503), and goes on with what it has."""

    draining: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Link(Protocol):
    """What the same keeper's other commands use."""

    @property
    def running(self) -> int:
        """Commands that run over it."""

    async def drain(self) -> None:
        """Take no command any more; returns when none runs."""


class Server(SocketServer):
    """On sockets with TLS and without. on_startup: called when connections are answered."""

    def __init__(
        self,
        app: ASGIApp,
        bounds: Bounds,
        *,
        plain: list[socket.socket],
        encrypted: list[socket.socket],
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(app, grace_s=_GRACE_S, bounds=bounds, encrypted=encrypted, tls=tls)
        self.on_startup: Callable[[], None] = lambda: None
        self._plain = plain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_startup()

    async def run_until_ended(self) -> None:
        await self.serve(self._plain)

    def cut(self) -> None:
        """End what runs."""
        for task in self.server_state.tasks:
            task.cancel()


class Life:
    """From the first request to the end, by signals."""

    def __init__(self, server: Server, app: DrainableApp, entrance: Entrance, reload: Callable[[], None]) -> None:
        self._server = server
        self._app = app
        self._entrance = entrance
        self._reload = reload
        self._link: Link | None = None
        self._told_to_end = asyncio.Event()
        self._told_again = asyncio.Event()
        self._over = asyncio.Event()

    async def lead(self, context: Context, link: AbstractAsyncContextManager[Link]) -> None:
        """Raises RbeeError REQUEST_CANCELED where a second signal ended it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_end)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        serving = asyncio.create_task(self._server.run_until_ended())
        linking = asyncio.create_task(self._hold_link(context, link))
        try:
            await _first_of(self._told_to_end.wait(), _ended(serving))
            await self._drain(context)
        finally:
            self._server.cut()
            self._server.end()
            self._over.set()
            await serving
            await linking
            audit.record(context.settings, "gateway.stop", emit=context.emit)
        if self._told_again.is_set():
            raise RbeeError(ErrorCode.REQUEST_CANCELED, "ended at once; running requests were cut off")

    def _on_end(self) -> None:
        (self._told_again if self._told_to_end.is_set() else self._told_to_end).set()

    async def _hold_link(self, context: Context, link: AbstractAsyncContextManager[Link]) -> None:
        """Without it other commands connect by themselves: no reason not to serve, nor to serve later."""
        try:
            async with link as self._link:
                await self._over.wait()
        except RbeeError as error:
            context.emit(Notice(f"other commands of this rbee connect by themselves: {error.message}"))

    async def _drain(self, context: Context) -> None:
        self._app.draining = True
        if self._open:
            running = "1 request has" if self._open == 1 else f"{self._open} requests have"
            text = f"ending: {running} {DRAIN_S:g} s; a second signal cuts off what runs"
            _log.info("%s", text)
            context.emit(Notice(text))
        try:
            async with asyncio.timeout(DRAIN_S):
                await _first_of(self._emptied(), self._told_again.wait())
        except TimeoutError:
            running = "1 request was" if self._open == 1 else f"{self._open} requests were"
            _log.warning("%s cut off", running)
            context.emit(Notice(f"{running} cut off: {DRAIN_S:g} s are over"))

    @property
    def _open(self) -> int:
        """Requests, and commands over the link."""
        return self._entrance.open + (self._link.running if self._link else 0)

    async def _emptied(self) -> None:
        if self._link:
            await self._link.drain()
        await self._entrance.emptied()


async def _ended(task: asyncio.Task[None]) -> None:
    """Raises what the task does: nobody else would see why nothing serves any more."""
    await asyncio.shield(task)


async def _first_of(*waits: Coroutine[Any, Any, object]) -> None:
    """Return when one of them does, and cancel the others. Raises what that one raises."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
