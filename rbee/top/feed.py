"""Nodes that are watched: each over one connection that is held, with one stream of its hive's news.

Rules
- Nothing is installed, started or changed on a node, nor is anybody asked anything: one that cannot be reached is shown
  with why, and tried again after growing pauses.
- Only so many nodes are connected to at once; one that hangs delays no other but by its place among them.
- A hive that is not there is looked for again, for whoever starts one; that is one stream, and no new connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import Emit, Event, Retry, silent
from rbee.base.retries import HOLD_CONNECT_S, HOLD_SILENCE_S
from rbee.context import Context
from rbee.gateway.nodes.pauses import Pauses
from rbee.inventory import Node
from rbee.node.hive_client import HiveClient
from rbee.node.pool import Pool
from rbee.node.session import NodeSession
from rbee.node.socket_http import HungUpError
from rbee.render.text import one_line
from rbee.top.watched import WatchedNode
from rbee_remote.protocol import ErrorCode

#: Nodes that are connected to at the same time: a key exchange is some 10 ms of this machine's time.
CONNECTING = 24
#: For connections to be closed in good order.
CLOSE_S = 2.0


@asynccontextmanager
async def watching(context: Context) -> AsyncIterator[Context]:
    """The same where nobody is asked or told anything, not by a connection either, with connections that are held."""
    quiet = replace(context, ask=None, ask_passphrase=None, emit=silent)
    if quiet.connections is not None:
        yield quiet
        return
    pool = Pool(quiet)
    try:
        yield replace(quiet, connections=pool)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await pool.aclose()


class Feeds:
    """Of all nodes. context: its connections are held, and shared with whoever does something to a node. changed:
    called whenever one is another. Used as `async with Feeds(…)`; at its end no task and no stream is left.

    nodes: as they are watched, by name.
    """

    def __init__(self, context: Context, nodes: Sequence[Node], changed: Callable[[], None]) -> None:
        self.nodes = {node.name: WatchedNode(node.name, tuple(sorted(node.tags))) for node in nodes}
        self._context, self._of, self._changed = context, nodes, changed
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Raises ConfigError."""
        self._registry = self._context.open_registry()
        room = asyncio.Semaphore(CONNECTING)
        for node in self._of:
            feed = Feed(self._session_maker(node), self.nodes[node.name], self._changed)
            task = asyncio.create_task(feed.run(room), name=f"watch {node.name}")
            task.add_done_callback(lambda _: self._changed())  # for who looks by `check`
            self._tasks.append(task)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._registry.close()

    def check(self) -> None:
        """Raises ElsewhereError where a connection is to be held elsewhere, and is not."""
        for task in self._tasks:
            if task.done():
                task.result()

    def _session_maker(self, node: Node) -> Callable[[Emit], NodeSession]:
        return lambda emit: NodeSession(replace(self._context, emit=emit), self._registry, node)


class Feed:
    """One node's. make_session: another one for each connection, its Emit hears of tries. watched: is told what
    happens."""

    def __init__(
        self, make_session: Callable[[Emit], NodeSession], watched: WatchedNode, changed: Callable[[], None]
    ) -> None:
        self._make_session = make_session
        self._watched = watched
        self._changed = changed
        self._pauses = Pauses()

    async def run(self, room: asyncio.Semaphore) -> None:
        """Until canceled. room: for connecting."""
        while True:
            try:
                await self._watch(room)
            except Exception as error:  # a bug in one node's feed must not end the others
                pause = self._pauses.after(error)
                self._watched.lost(reason(error, self._watched.name), time.monotonic() + pause)
                self._changed()
                await asyncio.sleep(pause)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Retry):
            self._watched.trying(f"try {event.attempt} of {event.attempts} failed: {one_line(event.reason)}")
            self._changed()

    async def _watch(self, room: asyncio.Semaphore) -> None:
        """One connection, for as long as it lasts. Raises what it ended with."""
        async with (
            AsyncExitStack() as held
        ):  # which hears how it ended: a connection that is silent is asked before use
            session = self._make_session(self._on_event)
            async with room:
                await _enter(held, session)
            lost = asyncio.create_task(session.connection.until_lost(HOLD_SILENCE_S))
            hives = asyncio.create_task(self._hives(session))
            try:
                await asyncio.wait({lost, hives}, return_when=asyncio.FIRST_COMPLETED)
                if hives.done():
                    hives.result()
            finally:
                for task in (lost, hives):
                    task.cancel()
                await asyncio.gather(lost, hives, return_exceptions=True)
            raise ConnectError(ErrorCode.CONNECTION_LOST, "the connection was lost")

    async def _hives(self, session: NodeSession) -> None:
        """One hive after the other. Raises RbeeError: what is wrong with the node."""
        hive = session.hive_at(session.facts.run_dir) if session.facts is not None else None
        is_probed = False
        while True:
            if hive is not None:
                await self._follow(hive)
            if not is_probed:
                probe = await session.probe()
                self._watched.probed(probe)
                hive, is_probed = session.hive_at(probe.run_dir), True
                if probe.hive_socket_present:
                    continue
            pause = self._pauses.after(HungUpError("news"))
            self._watched.no_hive()
            self._changed()
            await asyncio.sleep(pause)

    async def _follow(self, hive: HiveClient) -> None:
        """Returns when there is no hive. Raises SilenceError, ConnectError, NodeError INVALID_RESPONSE."""
        try:
            async with hive.watch(silence_s=HOLD_SILENCE_S) as events:
                async for told in events:
                    self._pauses.well()
                    self._watched.told(told, time.monotonic())
                    self._changed()
        except NodeError as error:
            if error.code is not ErrorCode.WORKER_GONE:
                raise


async def _enter(held: AsyncExitStack, session: NodeSession) -> None:
    try:
        async with asyncio.timeout(HOLD_CONNECT_S):
            await held.enter_async_context(session)
    except TimeoutError as error:
        raise ConnectError(
            ErrorCode.CONNECTION_TIMEOUT, f"{session.node.name} cannot be reached: no answer for {HOLD_CONNECT_S:g} s"
        ) from error


def reason(error: Exception, node: str) -> str:
    """A clause, without the node's name, which stands before it."""
    if not isinstance(error, RbeeError):
        return f"{type(error).__name__}: {error}"
    more = error.details.get("reason")
    said = f"{error.message} ({more})" if more else error.message
    return said.removeprefix(f"{node} ")
