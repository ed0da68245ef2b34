"""The use cases behind `rbee nodes`: ping, check, add."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee.context import Context
from rbee.errors import RefusedError, UsageError
from rbee.events import Emit, Event, Notice
from rbee.findings import ConnectionFacts, Finding, findings
from rbee.forwarding import forwarding_works
from rbee.inventory import Node
from rbee.probe import probe
from rbee.reach import PerNode, each, open_connection, reach
from rbee_remote.protocol import ErrorCode


@dataclass(frozen=True, slots=True)
class Ping:
    """Seconds to connect, to authenticate, and for one command once connected."""

    connect_s: float
    authenticate_s: float
    rtt_s: float


async def ping(context: Context, nodes: Sequence[Node], emit: Emit) -> list[PerNode[Ping]]:
    """Run one empty command on each node, all at once."""
    with context.open_registry() as registry:

        async def ask(node: Node) -> Ping:
            async with reach(node, context, registry, _only_notices(emit)) as connection:
                began = time.monotonic()
                await connection.run(":")
                rtt = time.monotonic() - began
                return Ping(connection.timings.connect_s, connection.timings.authenticate_s, rtt)

        return await each(nodes, ask)


def _only_notices(emit: Emit) -> Emit:
    """The tries of fifty nodes at once are noise; the row of a node says why it failed."""

    def filtered(event: Event) -> None:
        if isinstance(event, Notice):
            emit(event)

    return filtered


async def check(context: Context, node: Node, emit: Emit) -> list[Finding]:
    """The doctor: what of this node matters to rbee, each finding with its fix."""
    with context.open_registry() as registry:
        async with reach(node, context, registry, emit) as connection:
            found = await probe(connection, node)
            facts = ConnectionFacts(local=node.is_local, forwarding=await forwarding_works(connection, found.python))
    return findings(found, facts)


async def add(context: Context, node: Node, *, check_it: bool, assume_yes: bool, emit: Emit) -> Node:
    """`node` with its host key pinned, shown to the user and accepted; the caller writes the inventory.

    check_it: connect with the user's key and probe as well. Raises RefusedError HOST_KEY_UNKNOWN where nobody can be
    asked or the answer was no, UsageError for a name that is taken, and all that connecting and probing raise.
    """
    from rbee.ssh import scan_host_key

    if node.name in context.inventory.nodes:
        raise UsageError(f"there is a node {node.name!r} already", hint=f"`rbee nodes remove {node.name}` first")
    nodes = {**context.inventory.nodes, node.name: node}
    if node.host_key is None:
        key = await scan_host_key(node, nodes, emit=emit)
        emit(Notice(f"{node.host} shows the host key {key.fingerprint} ({key.algorithm})"))
        if not assume_yes:
            await _accept(context, node, key.fingerprint)
        node = replace(node, host_key=key.fingerprint)
    if check_it:
        async with open_connection(
            node, nodes, emit=emit, keeper_id=context.keeper_id, ask_passphrase=context.ask_passphrase
        ) as connection:
            found = await probe(connection, node)
            emit(Notice(f"{node.name}: {found.summary}"))
            facts = ConnectionFacts(local=False, forwarding=await forwarding_works(connection, found.python))
            for finding in findings(found, facts):
                if finding.level != "ok":
                    emit(Notice(f"{finding.title}: {finding.detail}; {finding.fix}"))
    return node


async def _accept(context: Context, node: Node, fingerprint: str) -> None:
    if context.ask is None:
        raise RefusedError(
            ErrorCode.HOST_KEY_UNKNOWN,
            f"the host key of {node.name} is not known, and there is nobody to ask",
            hint=f"compare {fingerprint} with the node's own, then add `--yes`",
            details={"got": fingerprint},
        )
    if not await context.ask("Is this the key of that machine?"):
        raise RefusedError(
            ErrorCode.HOST_KEY_UNKNOWN,
            f"the host key of {node.name} was not accepted",
            hint="on the node, `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints its fingerprint",
            details={"got": fingerprint},
        )
