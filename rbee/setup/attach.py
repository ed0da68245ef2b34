"""Phase 2: from an open connection to a hive that speaks our protocol.

Rules
- What is missing is put there, what is there is left alone: a second `attach` costs the probe and one request.
- An older hive is drained and replaced; a newer protocol than ours is refused, and nothing is changed on that node.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field, replace

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Notice
from rbee.base.locks import keeper_lock
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.diagnosis import check_home, check_run_dir, how_to_linger
from rbee.node.hive_client import HiveClient, hive_at
from rbee.node.probe import Probe, probe
from rbee.node.socket_http import SilenceError
from rbee.registry import NodeFacts, Registry
from rbee.setup import bootstrap
from rbee.setup.payload import Payload, build_payload
from rbee.transport.connection import Connection, quote
from rbee_remote.protocol import (
    PROTOCOL,
    VERSION,
    ErrorCode,
    HiveInfo,
    ProtocolError,
    RemoteError,
    StopRequest,
    decode,
    parse_json,
)

#: A hive starts in a fraction of a second; on a node that swaps or has a slow home it may take a while.
START_TIMEOUT_S = 45.0


@dataclass(frozen=True, slots=True)
class Attached:
    """A node that is ready to work. probe_s and bootstrap_s: seconds spent on each."""

    hive: HiveClient
    info: HiveInfo
    probe: Probe
    ready: bootstrap.Ready
    probe_s: float
    bootstrap_s: float
    payload: Payload = field(repr=False)


async def attach(connection: Connection, node: Node, context: Context, registry: Registry, emit: Emit) -> Attached:
    """Probe the node, put what is missing, find or start its hive, and remember the way there.

    Raises NodeError NODE_UNSUPPORTED, BOOTSTRAP_FAILED, DISK_FULL or VERSION_MISMATCH, and ConnectError.
    """
    began = time.monotonic()
    payload = build_payload()
    found = await _probe(connection, node)
    probed = time.monotonic()
    if bootstrap.is_complete(found, node, payload, context):
        ready = await bootstrap.ensure(connection, found, node, payload, context=context, emit=emit)
    else:
        async with keeper_lock(context.settings, f"bootstrap-{node.name}", f"prepares {node.name}", emit):
            found = await _probe(connection, node)
            ready = await bootstrap.ensure(connection, found, node, payload, context=context, emit=emit)
    connection.pipe_command = (*ready.command, "pipe")
    hive, info = await _current_hive(connection, node, found, ready, context, emit)
    _remember(registry, node, connection, found, ready, info)
    done = time.monotonic()
    return Attached(hive, info, found, ready, probed - began, done - probed, payload)


async def _probe(connection: Connection, node: Node) -> Probe:
    """Raises as `probe`, and NodeError NODE_UNSUPPORTED where others could change what rbee has on the node."""
    found = await probe(connection, node)
    check_home(found)
    check_run_dir(found)
    return found


async def _current_hive(
    connection: Connection, node: Node, found: Probe, ready: bootstrap.Ready, context: Context, emit: Emit
) -> tuple[HiveClient, HiveInfo]:
    """The node's hive, ours or newer with the same protocol."""
    hive = hive_at(connection, found.run_dir, keeper_id=context.keeper_id)
    try:
        info = await hive.health_or_none() if found.hive_socket_present else None
    except SilenceError as error:
        from rbee.node.hung_hive import does_not_answer

        raise does_not_answer(node.name, error) from error
    outdated = info is not None and _is_outdated(info, ready) and not await _is_shared(hive, info, context)
    if info and (outdated or info.draining):
        what = f"replacing the hive of rbee {info.version}" if outdated else "waiting for the hive that is stopping"
        emit(Notice(f"{what} (its workers finish what they do first)"))
        await hive.stop(StopRequest(drain=True))
        info = None
    if info is None:
        if found.kill_user_processes and not found.user_scope:
            emit(Notice(f"workers will end with this session (KillUserProcesses=yes); {how_to_linger(found)}"))
        info = await _start_hive(connection, found, ready)
    return hive, info


def _is_outdated(info: HiveInfo, ready: bootstrap.Ready) -> bool:
    """Whether to replace this hive. The same version with another payload is a development checkout: ours counts.

    Raises NodeError VERSION_MISMATCH for a hive that speaks a newer protocol.
    """
    if info.protocol > PROTOCOL:
        raise NodeError(
            ErrorCode.VERSION_MISMATCH,
            f"the hive speaks protocol {info.protocol} (rbee {info.version}), this keeper {PROTOCOL} ({VERSION})",
            hint="upgrade rbee here, or stop that hive with the rbee that started it: `rbee hive stop NODE`",
            details={"hive": info.version, "keeper": VERSION},
        )
    if info.payload == ready.digest:
        return False
    return info.protocol < PROTOCOL or _numbers(info.version) <= _numbers(VERSION)


async def _is_shared(hive: HiveClient, info: HiveInfo, context: Context) -> bool:
    """Whether another keeper's worker runs in a hive of our version with another payload: then it stays for now, or
    two checkouts that take turns would end each other's workers each time."""
    if (info.protocol, info.version) != (PROTOCOL, VERSION):
        return False
    leases = [lease for worker in await hive.workers() for lease in worker.leases]
    return any(lease.keeper != context.keeper_id for lease in leases)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if re.fullmatch(r"[0-9]{1,9}", part))


async def _start_hive(connection: Connection, found: Probe, ready: bootstrap.Ready) -> HiveInfo:
    """Start the hive, or find the one that somebody else started in the meantime."""
    words = [*ready.command, "hive", "--home", found.home, "--run-dir", found.run_dir]
    words += ["--payload", ready.digest, "--detach"]
    if found.user_scope:
        words = ["systemd-run", "--user", "--scope", "--quiet", *words]
    result = await connection.run(f"exec {' '.join(map(quote, words))}", timeout=START_TIMEOUT_S)
    try:
        answer = parse_json(result.stdout)
        if isinstance(answer, dict) and "error" in answer:
            raise NodeError.from_remote(RemoteError.decode(answer))
        return decode(HiveInfo, answer)
    except ProtocolError as error:
        raise NodeError(
            ErrorCode.BOOTSTRAP_FAILED,
            "the hive did not start",
            hint=f"look at {found.home}/log/hive.log on the node; if files there are damaged, remove "
            f"{ready.runtime} and {ready.payload}: the next command makes them anew",
            details={"status": result.status, "stderr": result.stderr.strip()[-400:]},
        ) from error


def _remember(
    registry: Registry, node: Node, connection: Connection, found: Probe, ready: bootstrap.Ready, info: HiveInfo
) -> None:
    """Keep what the next connection to this node can start from; nothing is written while nothing changes."""
    facts = NodeFacts(
        node=node.name,
        transport=connection.transport,
        home=found.home,
        run_dir=found.run_dir,
        python=ready.python,
        payload=ready.payload,
        hive_socket=info.socket,
    )
    known = registry.node_facts(node.name)
    if known is None or replace(known, last_seen_at="") != facts:
        registry.remember_node(facts)
