"""Nodes for the tests of `rbee gc`: a hive, its workers, processes, rows and files; each test changes one thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rbee.cleanup.actions import NodeSeen
from rbee.registry import WorkerRow
from rbee_remote.protocol import PROTOCOL, HiveInfo, Lease, WorkerInfo, WorkerState
from rbee_remote.protocol.sweep import FileSeen, ProcessSeen, Survey

NODE = "gpu1"
BOOT = "b" * 32
HOME = "/home/bee/.rbee/node"
RUN_DIR = "/run/user/1000/rbee/0011aabb"
ME, OTHER = "a" * 16, "c" * 16
WORKER = "0123456789abcdef"
PAYLOAD = "f" * 16
DAY = 86400.0


def hive(**changes: Any) -> HiveInfo:
    """The hive of the node, pid 10."""
    given = HiveInfo(
        PROTOCOL,
        "0.1.0",
        PAYLOAD,
        "h" * 16,
        10,
        100,
        BOOT,
        0.0,
        HOME,
        f"{RUN_DIR}/hive.sock",
        workers=1,
        draining=False,
    )
    return replace(given, **changes)


def worker(*leases: Lease, idle_s: float | None = 60.0, **changes: Any) -> WorkerInfo:
    """A worker as its hive tells of it, pid 20: idle for a minute of its five."""
    given = WorkerInfo(
        id=WORKER,
        model="smollm2:135m",
        state=WorkerState.IDLE if idle_s is not None else WorkerState.BUSY,
        backend="cpu",
        device="cpu",
        socket=f"{RUN_DIR}/worker-{WORKER}.sock",
        pid=20,
        start_ticks=200,
        boot_id=BOOT,
        ctx=4096,
        slots=4,
        slots_free=4,
        keep_alive_s=300.0,
        created_at=0.0,
        idle_s=idle_s,
        leases=leases,
    )
    return replace(given, **changes)


def process(**changes: Any) -> ProcessSeen:
    """That worker's process; its hive lives."""
    given = ProcessSeen(20, 200, BOOT, "worker", PAYLOAD, WORKER, "10.100", True, "S", 600.0, 900, answers=True)
    return replace(given, **changes)


def orphan(**changes: Any) -> ProcessSeen:
    """That worker's process after its hive was killed."""
    return process(**{"owner_lives": False, "answers": False, **changes})


def hive_process(**changes: Any) -> ProcessSeen:
    return replace(ProcessSeen(10, 100, BOOT, "hive", PAYLOAD, state="S", age_s=600.0, answers=True), **changes)


def file(kind: str, name: str, idle_s: float = 30 * DAY, **changes: Any) -> FileSeen:
    return replace(FileSeen(kind, f"{HOME}/{name}", 1000, idle_s, "1:2:3"), **changes)


def seen(
    *processes: ProcessSeen,
    files: tuple[FileSeen, ...] = (),
    hive: HiveInfo | None = None,
    workers: tuple[WorkerInfo, ...] = (),
    **changes: Any,
) -> NodeSeen:
    survey = Survey(BOOT, "box", 1e9, HOME, RUN_DIR, tuple(processes), files)
    return NodeSeen(replace(survey, **changes), hive, workers)


def row(**changes: Any) -> WorkerRow:
    """What the registry has of that worker."""
    given = WorkerRow(
        node=NODE,
        worker_id=WORKER,
        model="smollm2:135m",
        backend="cpu",
        device="cpu",
        state="idle",
        socket=f"{RUN_DIR}/worker-{WORKER}.sock",
        slots=4,
        slots_free=4,
        ctx=4096,
        keep_alive_s=300.0,
        boot_id=BOOT,
        pid=20,
        start_ticks=200,
        hive_instance="h" * 16,
        payload=PAYLOAD,
        created_at="2026-01-01T00:00:00.000Z",
        last_seen_at="2026-01-01T00:00:00.000Z",
        loaded={},
        secret="5ec2e75f" * 4,
    )
    return replace(given, **changes)
