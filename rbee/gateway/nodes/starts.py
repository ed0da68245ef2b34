"""Workers that are started: phases 2 to 7 of an `infer`, once for all who want the same worker.

Rules
- A start runs in a task of its own: who waits may leave, and it ends when the last one has.
- Its node is the link's: nothing is connected to for it, and a connection that breaks is the link's to mend.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

from rbee.base.errors import ConnectError
from rbee.base.events import Phase
from rbee.base.retries import REOPEN_TIMEOUT_S
from rbee.gateway.base.views import Target, WorkerKey
from rbee.gateway.nodes.node_link import NodeLink
from rbee.infer.infer import ready_worker
from rbee.infer.request import InferRequest
from rbee.infer.session import InferSession
from rbee.inventory import Node
from rbee.node.session import NodeSession
from rbee_remote.protocol import ErrorCode, LoadOptions


class LinkedSession(InferSession):
    """A request for a worker on a node that a link holds."""

    def __init__(self, target: Target, link: NodeLink) -> None:
        request = InferRequest(
            model=target.model, load=target.load, keep_alive_s=target.keep_alive_s, needs=target.ability
        )
        super().__init__(request, link.session.context, link.session.registry)
        self._link = link
        self._connections = 0

    async def on(self, node: Node) -> NodeSession:  # noqa: ARG002 - it is the link's
        """Raises ConnectError."""
        session = await self._link.reached()
        self._connections = self._link.connections
        return session

    async def reconnect(self, node: Node, error: ConnectError) -> None:
        """Wait until the link has another connection. Raises `error` where something hangs on the node, and
        ConnectError CONNECTION_LOST where there is none in time."""
        if error.code is not ErrorCode.CONNECTION_LOST or not self._connections:
            raise error
        try:
            async with asyncio.timeout(REOPEN_TIMEOUT_S):
                await self._link.reached_again(self._connections)
        except TimeoutError as why:
            message = f"lost the connection to {node.name}, and there is no other yet"
            raise ConnectError(error.code, message, hint=error.hint, details=error.details) from why


class _Wanted(NamedTuple):
    """What makes two starts the same."""

    node: str
    model: str
    load: LoadOptions
    ability: str


@dataclass(slots=True)
class _Start:
    task: asyncio.Task[WorkerKey]
    waiting: int = 0


@dataclass(slots=True)
class Starts:
    """Those that run."""

    _running: dict[_Wanted, _Start] = field(default_factory=dict)
    _ending: set[asyncio.Task[WorkerKey]] = field(default_factory=set)

    async def worker(self, link: NodeLink, target: Target) -> WorkerKey:
        """A worker that serves. Raises what phases 2 to 7 raise."""
        wanted = _Wanted(link.node.name, target.model, target.load, target.ability)
        start = self._running.get(wanted)
        if start is None:
            task = asyncio.create_task(_start(link, target), name=f"start {target.model} on {link.node.name}")
            start = self._running[wanted] = _Start(task)
            task.add_done_callback(lambda _: self._over(wanted, task))
        start.waiting += 1
        try:
            return await asyncio.shield(start.task)
        finally:
            start.waiting -= 1
            if not start.waiting and not start.task.done():
                self._give_up(wanted, start)

    def _give_up(self, wanted: _Wanted, start: _Start) -> None:
        """Nobody waits any more. It tells the node, which takes a moment; who wants the same now begins anew."""
        del self._running[wanted]
        self._ending.add(start.task)
        start.task.cancel()

    def _over(self, wanted: _Wanted, task: asyncio.Task[WorkerKey]) -> None:
        self._ending.discard(task)
        if (start := self._running.get(wanted)) and start.task is task:
            del self._running[wanted]
        if not task.cancelled():
            task.exception()  # who waited has it, and where nobody did nobody wants it

    async def aclose(self) -> None:
        tasks = [*self._ending, *(start.task for start in self._running.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _start(link: NodeLink, target: Target) -> WorkerKey:
    async with LinkedSession(target, link) as session:
        ready = await ready_worker(session, link.node)
    seconds, was_loaded = session.clock.seconds, ready.info.id in session.started
    load_s = sum(seconds[phase] for phase in (Phase.START, Phase.REGISTER, Phase.READY)) if was_loaded else None
    link.started(ready.info, ready.model, load_s)
    return WorkerKey(link.node.name, ready.info.id)
