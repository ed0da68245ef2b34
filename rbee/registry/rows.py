"""Rows of the registry: what is kept of a worker and of a node, and how that is made of what a hive says."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from rbee_remote.protocol import WorkerInfo, WorkerOptions, WorkerState
from rbee_remote.protocol.load_options import OPTIONS

OPTION_COLUMNS = tuple(name for name, option in OPTIONS.items() if option.column)


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A row of `workers`. created_at, last_seen_at: ISO 8601, UTC, milliseconds; other fields as in WorkerInfo.

    loaded: its options that have a column each, OPTION_COLUMNS, as the command line writes them.
    secret: what the worker says first to keepers; never shown.
    """

    node: str
    worker_id: str
    model: str
    backend: str
    device: str
    state: str
    socket: str
    slots: int
    slots_free: int
    ctx: int
    keep_alive_s: float
    boot_id: str
    pid: int
    start_ticks: int
    hive_instance: str
    payload: str
    created_at: str
    last_seen_at: str
    loaded: dict[str, str]
    secret: str = field(repr=False)

    @property
    def is_idle(self) -> bool:
        return self.state == WorkerState.IDLE.value

    @property
    def is_usable(self) -> bool:
        """Whether it could take a request at once when it was last seen, and can prove that it is the worker: nothing
        but that tells it from somebody who listens in its place since."""
        serves = self.state in (WorkerState.IDLE.value, WorkerState.READY.value)
        return serves and self.slots_free > 0 and bool(self.secret)


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A row of `nodes`: what worked the last time. transport: "forward" or "pipe". Paths are the node's.

    platform: as `Target.text` writes it, with the Python of its runtime; backend: of that. "" where neither is known.
    """

    node: str
    transport: str
    home: str
    run_dir: str
    python: str
    payload: str
    hive_socket: str
    last_seen_at: str = ""
    platform: str = ""
    backend: str = ""


def worker_record(node: str, info: WorkerInfo, hive_instance: str, payload: str) -> dict[str, Any]:
    """The row for what a hive just said of a worker, by column."""
    options = info.options or WorkerOptions()
    row = WorkerRow(
        node=node,
        worker_id=info.id,
        model=info.model,
        backend=info.backend,
        device=info.device,
        state=info.state.value,
        socket=info.socket,
        slots=info.slots,
        slots_free=info.slots_free,
        ctx=info.ctx,
        keep_alive_s=info.keep_alive_s,
        boot_id=info.boot_id,
        pid=info.pid,
        start_ticks=info.start_ticks,
        hive_instance=hive_instance,
        payload=payload,
        created_at=iso_time(info.created_at),
        last_seen_at=iso_time(time.time()),
        loaded={name: as_text(getattr(options, name)) for name in OPTION_COLUMNS},
        secret=info.secret,
    )
    values = asdict(row)
    return storable_values(values.pop("loaded") | values)


def storable_values(values: dict[str, Any]) -> dict[str, Any]:
    """A row as SQLite takes it."""
    return {name: storable(value) for name, value in values.items()}


def storable(value: Any) -> Any:
    """`value` as SQLite takes it: a node may say a number of any size, and text that is half a character."""
    match value:
        case str():
            return value.encode("utf-8", errors="replace").decode()
        case int():
            return max(-(2**63), min(value, 2**63 - 1))
    return value


def as_text(value: object) -> str:
    """One of OPTION_COLUMNS, as a row holds it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def iso_time(seconds: float) -> str:
    """Unix seconds as text that sorts by time."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.fromtimestamp(0, UTC)  # a node's clock may say anything
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
