"""Reaching nodes: one connection with what is remembered about its node, or many nodes at once.

Rules
- One node that hangs delays no other: each has its own deadline.
- A node that fails is a value in the result, not an exception.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Generic, TypeVar

from rbee.base.errors import ConnectError, RbeeError
from rbee.base.events import Emit
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.hive_client import HiveClient, hive_at
from rbee.node.probe import Probe, probe
from rbee.registry import Registry
from rbee.transport.connection import AskPassphrase, Connection, Transport
from rbee.transport.passphrases import Passphrases
from rbee.transport.reconnecting import Link
from rbee_remote.protocol import ErrorCode, HiveInfo

#: Connecting takes three tries of ten seconds at worst; the question itself a few more.
NODE_DEADLINE_S = 45.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class PerNode(Generic[T]):
    """What one node answered: exactly one of value and error is not None."""

    node: Node
    value: T | None = None
    error: RbeeError | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RunningHive:
    """A hive that answers."""

    client: HiveClient
    info: HiveInfo
    connection: Connection
    probe: Probe


@asynccontextmanager
async def open_connection(
    node: Node,
    inventory_nodes: Mapping[str, Node],
    *,
    emit: Emit,
    keeper_id: str,
    transport_hint: Transport | None = None,
    pipe_command: tuple[str, ...] | None = None,
    ask_passphrase: AskPassphrase | None = None,
) -> AsyncIterator[Connection]:
    """Reach `node`, and let go of it at the end.

    inventory_nodes: by name; a jump host that is one of them is reached by its own settings and host key.
    keeper_id: names the parts of files that this keeper sends. transport_hint: what worked last time.
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
        node, inventory_nodes, emit=emit, keeper_id=keeper_id, ask_passphrase=ask_passphrase
    ) as connection:
        connection.transport = transport_hint or "forward"
        connection.pipe_command = pipe_command
        yield connection


@asynccontextmanager
async def reach(node: Node, context: Context, registry: Registry, emit: Emit) -> AsyncIterator[Link]:
    """A connection to `node` that knows what worked last time. Raises ConnectError, RefusedError, ConfigError."""
    facts = registry.node_facts(node.name)
    passphrases = Passphrases(context.ask_passphrase)

    def opener(emit: Emit) -> AbstractAsyncContextManager[Connection]:
        return open_connection(
            node,
            context.inventory.nodes,
            emit=emit,
            keeper_id=context.keeper_id,
            transport_hint="pipe" if facts and facts.transport == "pipe" else None,
            pipe_command=(facts.python, "-I", facts.payload, "pipe") if facts else None,
            ask_passphrase=passphrases.asking(),
        )

    async with Link(node.name, opener, emit) as link:
        yield link


@asynccontextmanager
async def running_hive(
    node: Node, context: Context, registry: Registry, emit: Emit
) -> AsyncIterator[RunningHive | None]:
    """The hive of a node if one runs; nothing is installed or started to find out."""
    async with reach(node, context, registry, emit) as connection:
        found = await probe(connection, node)
        client = hive_at(connection, found.run_dir, keeper_id=context.keeper_id)
        info = await client.health_or_none() if found.hive_socket_present else None
        yield RunningHive(client, info, connection, found) if info else None


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
