"""Connections to nodes that are held between commands, one for each node, whoever uses it.

Rules
- What reaches a node is the key: when its entry in the inventory changes, or that of a jump host, it is another
  connection.
- Several that want a node at once open one connection. Who leaves closes nothing.
- `reopen` opens a connection beside the one that a user gave up. The others stay on theirs, as long as that works for
  them; it is closed when the last of them has left it. Two who gave up the same one share the one that follows.
- A passphrase is asked for by whoever opens, and not kept: a node whose key needs one is opened anew with it each time.
- All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rbee.base.errors import ConnectError
from rbee.base.events import Emit, silent
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.session import access_of, open_connection
from rbee.transport.connection import Connection, ConnectTimings, SocketAccess
from rbee.transport.reconnecting import ReconnectingConnection

#: A connection that was not heard of for so long is asked before it is used: the machine may have slept, or moved to
#: another network. One that does not answer in time counts as dead; a try with it would take ten seconds.
ASK_AFTER_S = 5.0
ANSWER_WITHIN_S = 1.0
#: Nothing was spent on a connection that was there.
_AT_ONCE = ConnectTimings(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Held:
    """One connection, for people. since_s, idle_s: seconds; idle_s None while somebody uses it."""

    node: str
    since_s: float
    idle_s: float | None


class Pool:
    """A `ConnectionPool`. idle_s: for how long a connection stays that nobody uses, None for as long as the pool."""

    def __init__(self, context: Context, *, idle_s: float | None = None) -> None:
        self._context = context
        self._shared = _Shared(idle_s)

    def of(self, context: Context) -> Pool:
        """The same connections for who has another inventory, or is asked otherwise for passphrases."""
        other = Pool(context)
        other._shared = self._shared
        return other

    def use(self, node: Node, emit: Emit) -> AbstractAsyncContextManager[ReconnectingConnection]:
        """As `ConnectionPool.use`."""
        return _User(self._slot(node), self._opener(node), emit)

    async def hold(self, node: Node) -> None:
        """Open the connection to a node, for those who come later. Raises as `node.session.open_connection`."""
        async with self.use(node, silent):
            pass

    def holds(self, node: Node) -> bool:
        """Whether there is a connection to it, dead or alive. This machine is always there."""
        return node.is_local or self._slot(node).current is not None

    async def is_alive(self, node: Node) -> bool:
        """Whether the connection that is held answers; asked where it was silent for a while. A dead one is dropped."""
        return node.is_local or await self._slot(node).freshened() is not None

    def held(self) -> list[Held]:
        """What is open, by node."""
        now = _now()
        return [
            Held(slot.node, now - slot.current.since, now - slot.current.left_at if not slot.current.users else None)
            for slot in self._shared.slots.values()
            if slot.current is not None
        ]

    async def aclose(self) -> None:
        """Close all of them; who still uses one finds it lost."""
        await self._shared.aclose()

    def _slot(self, node: Node) -> _Slot:
        key = _reached_by(node, self._context.inventory.nodes)
        return self._shared.slots.setdefault(key, _Slot(node.name, self._shared.idle_s))

    def _opener(self, node: Node) -> _Opener:
        return _Opener(self._context, node)


@dataclass(slots=True)
class _Shared:
    idle_s: float | None
    slots: dict[tuple[object, ...], _Slot] = field(default_factory=dict)

    async def aclose(self) -> None:
        slots, self.slots = self.slots, {}
        await asyncio.gather(*(slot.aclose() for slot in slots.values()))


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens a connection to a node as a session does, by what the registry knows of it."""

    context: Context
    node: Node

    def open(self, access: SocketAccess | None, emit: Emit) -> AbstractAsyncContextManager[Connection]:
        """access: what was learned on the connection before, None for the first."""
        if access is None:
            with self.context.open_registry() as registry:
                access = access_of(registry.node_facts(self.node.name))
        return open_connection(
            self.node,
            self.context.inventory.nodes,
            emit=emit,
            keeper_id=self.context.keeper_id,
            access=access,
            ask_passphrase=self.context.ask_passphrase,
        )


class _Open:
    """One open connection. users: how many are on it. since, left_at, heard_at: as `_now`."""

    def __init__(self, connection: Connection, closing: AsyncExitStack) -> None:
        self.connection = connection
        self.users = 0
        self.since = self.left_at = self.heard_at = _now()
        self._closing = closing

    async def answers(self) -> bool:
        """Whether it is of use; asked over the network only after a silence."""
        if _now() - self.heard_at <= ASK_AFTER_S:
            return not self.connection.is_closed
        alive = await self.connection.is_alive(ANSWER_WITHIN_S)
        if alive:
            self.heard_at = _now()
        return alive

    async def aclose(self) -> None:
        await self._closing.aclose()


class _Slot:
    """The place of one node's connection. current: the one that newcomers get, None where there is none."""

    def __init__(self, node: str, idle_s: float | None) -> None:
        self.node = node
        self.current: _Open | None = None
        self._idle_s = idle_s
        self._opening = asyncio.Lock()
        self._given_up: set[_Open] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    async def enter(self, opener: _Opener, emit: Emit) -> tuple[_Open, bool]:
        """A connection for one more user, and whether it was opened for him. Raises as `open_connection`."""
        async with self._opening:
            found = await self.freshened()
            if found is None:
                found, opened = await self._open(opener, None, emit), True
            else:
                opened = False
            return self._used(found), opened

    async def instead_of(self, lost: _Open, opener: _Opener, emit: Emit) -> _Open:
        """The connection that follows one which its user gives up. Raises as `open_connection`."""
        async with self._opening:
            if self.current is lost:
                self.current = None
                self._given_up.add(lost)
            access = lost.connection.access
            self.leave(lost)
            return self._used(self.current or await self._open(opener, access, emit))

    def leave(self, connection: _Open) -> None:
        """One user less."""
        connection.users -= 1
        connection.left_at = _now()
        if connection.users:
            return
        if connection is not self.current:
            self._give_up(connection)
        elif self._idle_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._expire)

    async def freshened(self) -> _Open | None:
        """The current one, if it still answers."""
        found = self.current
        if found is None or await found.answers():
            return found
        if self.current is found:
            self.current = None
            self._given_up.add(found)
            if not found.users:
                self._give_up(found)
        return self.current

    async def aclose(self) -> None:
        self._stop_timer()
        for connection in {self.current, *self._given_up} - {None}:
            assert connection is not None
            self._give_up(connection)
        self.current = None
        await asyncio.gather(*self._closing)

    def _used(self, connection: _Open) -> _Open:
        self._stop_timer()
        connection.users += 1
        return connection

    async def _open(self, opener: _Opener, access: SocketAccess | None, emit: Emit) -> _Open:
        async with AsyncExitStack() as stack:
            connection = await stack.enter_async_context(opener.open(access, emit))
            self.current = _Open(connection, stack.pop_all())
            return self.current

    def _expire(self) -> None:
        if self.current is not None and not self.current.users:
            connection, self.current = self.current, None
            self._give_up(connection)

    def _give_up(self, connection: _Open) -> None:
        self._given_up.discard(connection)
        task = asyncio.create_task(connection.aclose(), name=f"close the connection to {self.node}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _User(ReconnectingConnection):
    """One user's view of what a slot holds."""

    def __init__(self, slot: _Slot, opener: _Opener, emit: Emit) -> None:
        super().__init__(slot.node, opener.open, emit)
        self._slot = slot
        self._opens = opener
        self._on: _Open | None = None
        self._opened = False

    async def __aenter__(self) -> Self:
        self._on, self._opened = await self._slot.enter(self._opens, self._emit)
        self.is_open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on is not None:
            self._on.heard_at = self._on.heard_at if isinstance(error, ConnectError) else _now()
            self._slot.leave(self._on)
            self._on = None

    async def reopen(self, emit: Emit = silent) -> None:
        """As `ReconnectingConnection.reopen`."""
        self.is_open = False
        lost, self._on = self._on, None
        if lost is None:
            self._on, _ = await self._slot.enter(self._opens, emit)
        else:
            self._on = await self._slot.instead_of(lost, self._opens, emit)
        self._opened = self.is_open = True

    @property
    def _current(self) -> Connection:
        assert self._on is not None, "it is used inside `async with`"
        return self._on.connection

    @property
    def timings(self) -> ConnectTimings:
        """What this user waited for."""
        return self._current.timings if self._opened else _AT_ONCE


def _reached_by(node: Node, nodes: Mapping[str, Node]) -> tuple[object, ...]:
    """All that the inventory says of how a node is reached, its jump hosts included; the inventory has no circle."""
    hops = tuple(_reached_by(nodes[hop], nodes) if hop in nodes else hop for hop in node.jump)
    return (node.name, node.host, node.port, node.user, node.identity_file, node.host_key, hops)


def _now() -> float:
    """Seconds; the time that the machine slept counts, where the system tells."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)
