"""One node, now: its connection, what is remembered about it, and its hive once there is one. And many nodes at once.

Rules
- Whoever works on a node is handed its `NodeSession`, in place of all that this holds.
- One node that hangs delays no other: each has its own deadline.
- A node that fails is a value in the result, not an exception.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Generic, Self, TypeVar

from rbee.base.errors import ConnectError, RbeeError
from rbee.base.events import Emit
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.hive_client import HiveClient, WorkerClient
from rbee.node.probe import Probe, probe
from rbee.registry import NodeFacts, Registry
from rbee.transport.connection import AskPassphrase, Connection, SocketAccess
from rbee.transport.passphrases import Passphrases
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import HIVE_SOCKET, ErrorCode, HiveInfo, WorkerInfo

#: Connecting takes three tries of ten seconds at worst; the question itself a few more.
NODE_DEADLINE_S = 45.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RunningHive:
    """A hive that answers."""

    client: HiveClient
    info: HiveInfo


@dataclass(frozen=True, slots=True)
class Attached:
    """What makes a node ready to work. probe_s and bootstrap_s: seconds spent on each."""

    hive: HiveClient
    info: HiveInfo
    probe: Probe
    probe_s: float
    bootstrap_s: float


class NodeSession:
    """registry: whoever opened it closes it. connection: open inside `async with`.

    facts: what the registry has of the node, None for nothing. Use cases have it from `open_session` and `on_each`.
    """

    connection: ReconnectingConnection
    _held: AbstractAsyncContextManager[ReconnectingConnection]

    def __init__(self, context: Context, registry: Registry, node: Node) -> None:
        self.context = context
        self.registry = registry
        self.node = node
        self.facts: NodeFacts | None = None
        self._attached: Attached | None = None
        self._passphrases = Passphrases(context.ask_passphrase)

    async def __aenter__(self) -> Self:
        """Connect, the way that worked last time. Raises ConnectError, RefusedError, ConfigError."""
        self.facts = self.registry.node_facts(self.node.name)
        pool = self.context.connections
        self._held = (
            pool.use(self.node, self.emit)
            if pool
            else ReconnectingConnection(self.node.name, self._open, self.emit, access_of(self.facts))
        )
        self.connection = await self._held.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.__aexit__(kind, error, trace)

    def _open(self, access: SocketAccess, emit: Emit) -> AbstractAsyncContextManager[Connection]:
        return open_connection(
            self.node,
            self.context.inventory.nodes,
            emit=emit,
            keeper_id=self.context.keeper_id,
            access=access,
            ask_passphrase=self._passphrases.asking(),
        )

    @property
    def emit(self) -> Emit:
        return self.context.emit

    @property
    def is_attached(self) -> bool:
        return self._attached is not None

    @property
    def attached(self) -> Attached:
        """The node's hive, and what was found on the way to it; `setup.attach` comes first."""
        assert self._attached is not None, f"{self.node.name} is not attached"
        return self._attached

    async def probe(self) -> Probe:
        """Raises as `probe`."""
        return await probe(self.connection, self.node)

    def hive_at(self, run_dir: str) -> HiveClient:
        """The hive whose runtime folder is `run_dir`, whether or not it runs."""
        return HiveClient(self.connection, f"{run_dir}/{HIVE_SOCKET}", keeper_id=self.context.keeper_id)

    def worker_at(self, socket: str, worker_id: str, secret: str = "") -> WorkerClient:
        """secret: as of `WorkerClient`."""
        keeper_id = self.context.keeper_id
        return WorkerClient(self.connection, socket, worker_id=worker_id, keeper_id=keeper_id, secret=secret)

    async def running_hive(self) -> RunningHive | None:
        """The node's hive if one runs; nothing is installed or started to find out."""
        found = await self.probe()
        hive = self.hive_at(found.run_dir)
        info = await hive.health_or_none() if found.hive_socket_present else None
        return RunningHive(hive, info) if info else None

    def remember(self, attached: Attached, *, python: str, payload: str, platform: str = "", backend: str = "") -> None:
        """Keep the hive, and in the registry what the next session can start from, which is written where it changed.

        python, payload: absolute paths on the node. platform, backend: as in `NodeFacts`.
        """
        self._attached = attached
        facts = NodeFacts(
            node=self.node.name,
            transport=self.connection.access.transport,
            home=attached.probe.home,
            run_dir=attached.probe.run_dir,
            python=python,
            payload=payload,
            hive_socket=attached.info.socket,
            platform=platform,
            backend=backend,
        )
        known = self.registry.node_facts(self.node.name)
        if known is None or replace(known, last_seen_at="") != facts:
            self.registry.remember_node(facts)

    def record(self, worker: WorkerInfo) -> None:
        """Have the registry know a worker of the attached hive."""
        hive = self.attached.info
        self.registry.upsert_worker(self.node.name, worker, hive_instance=hive.instance, payload=hive.payload)


def access_of(facts: NodeFacts | None) -> SocketAccess:
    """How sockets of a node were reached the last time."""
    if facts is None:
        return SocketAccess()
    return SocketAccess("pipe" if facts.transport == "pipe" else "forward", (facts.python, "-I", facts.payload, "pipe"))


@asynccontextmanager
async def open_connection(
    node: Node,
    inventory_nodes: Mapping[str, Node],
    *,
    emit: Emit,
    keeper_id: str,
    access: SocketAccess = SocketAccess(),  # noqa: B008 - it is frozen
    ask_passphrase: AskPassphrase | None = None,
) -> AsyncIterator[Connection]:
    """Connect to `node`, and let go of it at the end.

    inventory_nodes: by name; a jump host that is one of them is reached by its own settings and host key.
    keeper_id: names the parts of files that this keeper sends. access: what worked last time.
    ask_passphrase: None where nobody can be asked; encrypted keys then need an agent.
    Raises ConnectError, RefusedError, ConfigError.
    """
    if node.is_local:
        from rbee.transport.local import LocalConnection

        async with LocalConnection(keeper_id=keeper_id) as local:
            yield local
        return
    from rbee.transport.ssh import connect

    async with connect(
        node, inventory_nodes, emit=emit, keeper_id=keeper_id, access=access, ask_passphrase=ask_passphrase
    ) as connection:
        yield connection


@asynccontextmanager
async def open_session(context: Context, node: Node) -> AsyncIterator[NodeSession]:
    """A session with one node, and a registry for it. Raises ConnectError, RefusedError, ConfigError."""
    with context.open_registry() as registry:
        async with NodeSession(context, registry, node) as session:
            yield session


@dataclass(frozen=True, slots=True)
class PerNode(Generic[T]):
    """What one node answered: exactly one of value and error is not None."""

    node: Node
    value: T | None = None
    error: RbeeError | None = None


async def on_each(
    context: Context,
    nodes: Sequence[Node],
    ask: Callable[[NodeSession], Awaitable[T]],
    *,
    deadline_s: float = NODE_DEADLINE_S,
) -> list[PerNode[T]]:
    """Ask all nodes at once, each in a session of its own, over one registry. deadline_s: as of `each`."""
    with context.open_registry() as registry:

        async def one(node: Node) -> T:
            async with NodeSession(context, registry, node) as session:
                return await ask(session)

        return await each(nodes, one, deadline_s=deadline_s)


async def each(
    nodes: Sequence[Node], ask: Callable[[Node], Awaitable[T]], *, deadline_s: float | None = NODE_DEADLINE_S
) -> list[PerNode[T]]:
    """Ask all nodes at once; the results stand in the order of the nodes. deadline_s: of each, None for none."""

    async def one(node: Node) -> PerNode[T]:
        try:
            async with asyncio.timeout(deadline_s):
                return PerNode(node, value=await ask(node))
        except RbeeError as error:
            return PerNode(node, error=error)
        except TimeoutError:
            late = f"{node.name} did not answer within {deadline_s:g} s"
            return PerNode(node, error=ConnectError(ErrorCode.CONNECTION_TIMEOUT, late))

    return list(await asyncio.gather(*map(one, nodes)))
