"""Phase 2: from an open connection to a hive that speaks our protocol.

Rules
- What is missing is put there, what is there is left alone: a second `attach` costs the probe and one request.
- An older hive is drained and replaced; a newer protocol than ours is refused, and nothing is changed on that node.
"""

from __future__ import annotations

import re
import time

from rbee.base.errors import NodeError
from rbee.base.events import Notice
from rbee.base.locks import keeper_lock
from rbee.base.retries import HIVE_START_S
from rbee.node.diagnosis import check_home, check_run_dir, how_to_linger
from rbee.node.hive_client import HiveClient
from rbee.node.probe import Probe
from rbee.node.session import Attached, NodeSession
from rbee.node.socket_http import SilenceError
from rbee.setup import bootstrap
from rbee.setup.base.payload import build_payload
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


async def attach(
    session: NodeSession, meanwhile: bootstrap.Meanwhile | None = None, *, wait_for_gpu: bool = False
) -> Attached:
    """Probe the node, put what is missing, find or start its hive, and remember the way there.

    meanwhile, wait_for_gpu: as of `bootstrap.ensure`.

    Raises NodeError NODE_UNSUPPORTED, BOOTSTRAP_FAILED, DISK_FULL or VERSION_MISMATCH, and ConnectError.
    """
    began = time.monotonic()
    found, ready, probed = await make_ready(session, meanwhile, wait_for_gpu=wait_for_gpu)
    session.connection.use_pipe((*ready.command, "pipe"))
    hive, info = await _current_hive(session, found, ready)
    attached = Attached(hive, info, found, probed - began, time.monotonic() - probed)
    session.remember(
        attached, python=ready.python, payload=ready.payload, platform=ready.platform, backend=ready.backend
    )
    return attached


async def make_ready(
    session: NodeSession, meanwhile: bootstrap.Meanwhile | None = None, *, wait_for_gpu: bool = False
) -> tuple[Probe, bootstrap.Ready, float]:
    """All but the hive, which stays as it is; and when the node was probed (`time.monotonic`). Raises as `attach`."""
    payload = build_payload()
    found = await _probe(session)
    probed = time.monotonic()
    if bootstrap.is_complete(session, found, payload, wait_for_gpu=wait_for_gpu):
        ready = await bootstrap.ensure(session, found, payload, wait_for_gpu=wait_for_gpu)
    else:
        name = session.node.name
        lock = keeper_lock(session.context.settings, f"bootstrap-{name}", f"prepares {name}", session.emit)
        async with lock as waited:
            if waited:
                found = await _probe(session)
            ready = await bootstrap.ensure(session, found, payload, meanwhile, wait_for_gpu=wait_for_gpu)
    return found, ready, probed


async def _probe(session: NodeSession) -> Probe:
    """Raises as `probe`, and NodeError NODE_UNSUPPORTED where others could change what rbee has on the node."""
    found = await session.probe()
    check_home(found)
    check_run_dir(found)
    return found


async def _current_hive(session: NodeSession, found: Probe, ready: bootstrap.Ready) -> tuple[HiveClient, HiveInfo]:
    """The node's hive, ours or newer with the same protocol."""
    hive = session.hive_at(found.run_dir)
    try:
        info = await hive.health_or_none() if found.hive_socket_present else None
    except SilenceError as error:
        from rbee.node.hung_hive import does_not_answer

        raise does_not_answer(session.node.name, error) from error
    replaced = _why_replaced(info, ready) if info else ""
    if info and replaced and await _is_shared(hive, info, session.context.keeper_id):
        if info.payload == ready.digest:
            session.emit(Notice(f"another keeper's worker runs in {replaced}: that hive stays for now"))
        replaced = ""
    if info and (replaced or info.draining):
        what = f"replacing {replaced}" if replaced else "waiting for the hive that is stopping"
        session.emit(Notice(f"{what} (its workers finish what they do first)"))
        await hive.stop(StopRequest(drain=True))
        info = None
    if info is None:
        if found.kill_user_processes and not found.user_scope:
            why = "workers will end with this session (KillUserProcesses=yes)"
            session.emit(Notice(f"{why}; {how_to_linger(found)}"))
        info = await _start_hive(session.connection, found, ready)
    return hive, info


def _why_replaced(info: HiveInfo, ready: bootstrap.Ready) -> str:
    """Which hive it is that is to be replaced, in words; "" for one that is not. The same version with another payload
    is a development checkout: ours counts. One of another runtime has workers without the llama.cpp that the node has
    by now, such as its GPU's.

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
        others = info.runtime not in ("", ready.runtime.rpartition("/")[2])
        return f"the hive, which has another llama.cpp than the one for {ready.backend}" if others else ""
    older = info.protocol < PROTOCOL or _numbers(info.version) <= _numbers(VERSION)
    return f"the hive of rbee {info.version}" if older else ""


async def _is_shared(hive: HiveClient, info: HiveInfo, keeper_id: str) -> bool:
    """Whether another keeper's worker runs in a hive of our version with another payload: then it stays for now, or
    two checkouts that take turns would end each other's workers each time."""
    if (info.protocol, info.version) != (PROTOCOL, VERSION):
        return False
    leases = [lease for worker in await hive.workers() for lease in worker.leases]
    return any(lease.keeper != keeper_id for lease in leases)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if re.fullmatch(r"[0-9]{1,9}", part))


async def _start_hive(connection: Connection, found: Probe, ready: bootstrap.Ready) -> HiveInfo:
    """Start the hive, or find the one that somebody else started in the meantime."""
    words = [*ready.command, "hive", "--home", found.home, "--run-dir", found.run_dir]
    words += ["--payload", ready.digest, "--detach"]
    if found.user_scope:
        words = ["systemd-run", "--user", "--scope", "--quiet", *words]
    result = await connection.run(f"exec {' '.join(map(quote, words))}", timeout=HIVE_START_S)
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
            f"{ready.runtime} and {ready.payload}: the next command makes them again",
            details={"status": result.status, "stderr": result.stderr.strip()[-400:]},
        ) from error
