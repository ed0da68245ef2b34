"""What the keeper asks of a hive about itself and its workers."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol.load import Lease, WorkerState
from rbee_remote.protocol.load_options import WorkerOptions
from rbee_remote.protocol.models import ModelInfo


@dataclasses.dataclass(frozen=True, slots=True)
class HiveInfo:
    """GET /v1/health of a hive, and what `hive --detach` prints once it serves.

    instance: 16 hex digits, made at start. started_at: Unix seconds on the node's clock.
    payload: digest of the payload it runs from. boot_id and start_ticks identify the process across reboots.
    runtime: the key of the runtime that its Python is of, which its workers run in, too; "" for another Python.
    """

    protocol: int
    version: str
    payload: str
    instance: str
    pid: int
    start_ticks: int
    boot_id: str
    started_at: float
    home: str
    socket: str
    workers: int
    draining: bool
    runtime: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class SpawnRequest:
    """POST /v1/workers: make sure that a worker for `model` runs. Answers with `WorkerInfo`, started or found.

    model: a ref that stands in the node's catalog. keep_alive_s: seconds of idleness until the worker exits;
    negative for never. max_workers: the node's limit from the inventory, None for no limit.
    env: variables for the worker's process. timeout_s: seconds left of the caller's deadline, None for none: a load
    that nobody wants for longer is given up when it passes. audit_head: the digest of the last line in the keeper's own
    record, which the node's record keeps: with it the one shows what the other has lost. "" for none. sandbox: whether
    the worker keeps itself from the rest of the machine: auto, where nothing can break by it, on or off. A worker that
    runs already is taken as it is.
    """

    model: str
    options: WorkerOptions = dataclasses.field(default_factory=WorkerOptions)
    keep_alive_s: float = 300.0
    max_workers: int | None = None
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    timeout_s: float | None = None
    audit_head: str = ""
    sandbox: str = "auto"


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """POST /v1/preflight with a `SpawnRequest`: what the model needs and what the node has, in MB (10**6 bytes).

    needed_mb is weights_mb + kv_mb + compute_mb. memory: "ram" or "vram", whichever holds the weights.
    ctx and slots: what a worker would get. measured: whether llama.cpp was asked, or a formula over the model's
    metadata was enough, which is an upper bound.
    """

    memory: str
    needed_mb: int
    available_mb: int
    weights_mb: int
    kv_mb: int
    compute_mb: int
    backend: str
    device: str
    ctx: int = 0
    slots: int = 0
    measured: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker, as the hive knows it: GET /v1/workers and each `state` event of /v1/workers/ID/events.

    id: instance id, 16 hex digits. device: "cpu", or the GPU's name. progress: loaded share from 0 to 1.
    rss_mb: resident memory in MB, 0 while unknown. idle_s: seconds since the last request ended, None while one runs.
    options: how the model is loaded, with nothing left open. audit_head: told to who has just started it, the digest of
    the last line in the node's record. secret: what the worker says first on its socket for keepers
    (`protocol.greeting`); "" for one that has none. sandbox: as in WorkerStatus. sha256: of the file that it has
    loaded, "" while unknown.
    """

    id: str
    model: str
    state: WorkerState
    backend: str
    device: str
    socket: str
    pid: int
    start_ticks: int
    boot_id: str
    ctx: int
    slots: int
    slots_free: int
    keep_alive_s: float
    created_at: float
    progress: float = 0.0
    rss_mb: int = 0
    idle_s: float | None = None
    log: str = ""
    error: dict[str, Any] | None = None
    options: WorkerOptions | None = None
    leases: tuple[Lease, ...] = ()
    audit_head: str = ""
    secret: str = dataclasses.field(default="", repr=False)
    sandbox: str = ""
    sha256: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class StopRequest:
    """POST /v1/stop (hive) or DELETE /v1/workers/ID with a body.

    drain: let running requests finish first. patience_s: seconds each step of the escalation waits.
    follower: the name under which the caller followed the worker's load, which it gives up: a worker that serves
    already, or whose load somebody else follows, is then left alone.
    only_idle_s: end it only if it has been idle for that long and no other keeper's lease holds it; else it is refused
    with IN_USE, and nothing has changed. None for no such condition.
    """

    drain: bool = True
    patience_s: float = 5.0
    follower: str = ""
    only_idle_s: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class HiveNews:
    """Event `news` of GET /v1/news on a hive's socket: at once, and then at each change of a worker or the catalog.

    workers: all that there are. models: the whole catalog, None where it is the same as in the event before.
    """

    workers: tuple[WorkerInfo, ...]
    models: tuple[ModelInfo, ...] | None = None
