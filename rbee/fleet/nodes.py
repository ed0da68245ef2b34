"""The use cases behind `rbee nodes`: ping, check, add."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from rbee.base.errors import ConnectError, NodeError, RefusedError, UsageError
from rbee.base.events import Emit, Event, Notice
from rbee.cleanup.payload_commands import gpus
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.diagnosis import ConnectionFacts, Finding, findings
from rbee.node.probe import Probe, probe
from rbee.node.session import NodeSession, PerNode, on_each, open_connection, open_session
from rbee.transport.forwarding import forwarding_works
from rbee_remote.protocol import ErrorCode, GpuReport
from rbee_remote.protocol.gpus import Reason

if TYPE_CHECKING:
    from rbee.transport.ssh.hostkeys import HostKey
    from rbee.transport.ssh.scan import Scanned


@dataclass(frozen=True, slots=True)
class Ping:
    """Seconds to connect, to authenticate, and for one command once connected."""

    connect_s: float
    authenticate_s: float
    rtt_s: float


async def ping(context: Context, nodes: Sequence[Node]) -> list[PerNode[Ping]]:
    """Run one empty command on each node, all at once."""

    async def ask(session: NodeSession) -> Ping:
        connection, began = session.connection, time.monotonic()
        await connection.run(":")
        rtt = time.monotonic() - began
        return Ping(connection.timings.connect_s, connection.timings.authenticate_s, rtt)

    return await on_each(replace(context, emit=_only_notices(context.emit)), nodes, ask)


def _only_notices(emit: Emit) -> Emit:
    """The tries of fifty nodes at once are noise; the row of a node says why it failed."""

    def filtered(event: Event) -> None:
        if isinstance(event, Notice):
            emit(event)

    return filtered


async def check(context: Context, node: Node) -> list[Finding]:
    """The doctor: what of this node matters to rbee, each finding with its fix."""
    async with open_session(context, node) as session:
        found = await session.probe()
        forwarding = await forwarding_works(session.connection, found.python)
        gpus = await _gpus(session, found)
    return findings(found, ConnectionFacts(local=node.is_local, forwarding=forwarding), gpus)


async def _gpus(session: NodeSession, found: Probe) -> GpuReport | None:
    """None where there is nothing to ask with, or no answer: a driver that hangs takes whoever asks it along."""
    if found.system != "Linux" or found.home_problem:
        return None
    try:
        return await gpus(session.connection, found)
    except NodeError as error:
        if error.code is ErrorCode.NODE_UNSUPPORTED:  # no Python that will do
            return None
        return GpuReport(reason=Reason.UNKNOWN.value, said=error.message)
    except ConnectError:
        return GpuReport(reason=Reason.TIMEOUT.value, said="no answer")


class AcceptedBy(StrEnum):
    """Who vouched for a host key. NOBODY: `--yes` did, for whatever was shown."""

    KNOWN_HOSTS = "known_hosts"
    OPTION = "--host-key"
    USER = "asked"
    NOBODY = "--yes"


@dataclass(frozen=True, slots=True)
class Added:
    """node: as it is to be written. key: its host key, None where certificates decide, by what known_hosts says."""

    node: Node
    key: HostKey | None
    accepted_by: AcceptedBy


async def add(context: Context, node: Node, *, assume_yes: bool) -> Added:
    """Look at `node`'s host key, have it accepted and pin it; connect, checked against that key, and probe.

    The caller writes the inventory. A pin that `node` has already was compared by the user, and the machine must show
    that key. Raises RefusedError HOST_KEY_UNKNOWN where nobody can be asked or the answer was no, HOST_KEY_MISMATCH
    where known_hosts or the pin says otherwise, UsageError for a name that is taken, and all that connecting and
    probing raise.
    """
    from rbee.transport.ssh import scan_host_key

    if node.name in context.inventory.nodes:
        raise UsageError(
            f"node {node.name!r} exists already", hint=f"choose another name, or `rbee nodes remove {node.name}` first"
        )
    nodes, emit = {**context.inventory.nodes, node.name: node}, context.emit
    scanned = await scan_host_key(node, nodes, emit=emit, ask_passphrase=context.ask_passphrase)
    accepted_by = await _accept(context, node, scanned, assume_yes=assume_yes)
    if scanned.key is not None:
        node = replace(node, host_key=scanned.key.fingerprint)
    async with open_connection(
        node, nodes, emit=emit, keeper_id=context.keeper_id, ask_passphrase=context.ask_passphrase
    ) as connection:
        found = await probe(connection, node)
        emit(Notice(f"{node.name}: {found.summary}"))
        facts = ConnectionFacts(local=False, forwarding=await forwarding_works(connection, found.python))
        for finding in findings(found, facts):
            if finding.level != "ok":
                emit(Notice(f"{finding.title}: {finding.detail}; {finding.fix}"))
    return Added(node, scanned.key, accepted_by)


async def _accept(context: Context, node: Node, scanned: Scanned, *, assume_yes: bool) -> AcceptedBy:
    """Who vouches for the key. Raises RefusedError HOST_KEY_UNKNOWN where it is nobody."""
    emit = context.emit
    if scanned.key is None:
        emit(Notice(f"known_hosts names a certificate authority for {node.host}: no host key is pinned"))
        return AcceptedBy.KNOWN_HOSTS
    key = f"{scanned.key.fingerprint} ({scanned.key.algorithm})"
    if node.host_key is not None:
        emit(Notice(f"{node.host} shows the host key {key}, as --host-key says"))
        return AcceptedBy.OPTION
    if scanned.known:
        emit(Notice(f"{node.host} shows the host key {key}, as known_hosts has it"))
        return AcceptedBy.KNOWN_HOSTS
    emit(Notice(f"{node.host} shows the host key {key}"))
    if assume_yes:
        emit(Notice(f"--yes accepts {key} for {node.name}: nobody compared it with the machine's own"))
        return AcceptedBy.NOBODY
    await _ask(context, node, scanned.key.fingerprint)
    return AcceptedBy.USER


async def _ask(context: Context, node: Node, fingerprint: str) -> None:
    compare = "compare it with the machine's own (there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)"
    if context.ask is None:
        raise RefusedError(
            ErrorCode.HOST_KEY_UNKNOWN,
            f"the host key of {node.name} is not known, and there is no terminal to ask on",
            hint=f"{compare}, then pin just that one: rbee nodes add … --host-key {fingerprint}",
            details={"got": fingerprint},
        )
    if not await context.ask("Is this the key of that machine?"):
        raise RefusedError(
            ErrorCode.HOST_KEY_UNKNOWN,
            f"the host key of {node.name} was not accepted",
            hint=f"{compare}, then pin what it prints: rbee nodes add … --host-key SHA256:…",
            details={"got": fingerprint},
        )
