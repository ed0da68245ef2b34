"""Where a worker stands, and what it is started with."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

from rbee_remote.protocol.load_options import WorkerOptions
from rbee_remote.protocol.node_load import Work


class WorkerState(str, enum.Enum):
    """Where a worker stands. `idle` and `ready` have a free slot; only `idle` counts down its keep-alive."""

    STARTING = "starting"
    LOADING = "loading"
    IDLE = "idle"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A keeper's claim on a worker: until it is over, the worker stays, and nobody else's clean-up ends it.

    keeper: its id, "" for clients that do not say (OpenAI's). left_s: seconds until it is over, on the node's clock;
    None while a request of that keeper is open, and for a keep-alive without end.
    """

    keeper: str
    left_s: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class LeaseRequest:
    """POST /v1/admin/lease of a worker: a keeper is about to send it requests. keep_alive_s: negative for never."""

    keeper: str
    keep_alive_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Served:
    """A request that has ended, for the audit log: neither prompt nor answer. finish: stop, length, canceled, …

    who: `user@host` of the keeper, as it says.
    """

    request_id: str
    keeper: str
    who: str
    prompt_tokens: int
    completion_tokens: int
    finish: str


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerStatus:
    """GET /v1/health of a worker, and each line it writes to the hive's status pipe.

    served: in lines to the hive, the requests that ended since the line before; none is left out.
    sandbox: what keeps it from the rest of the machine, such as landlock+seccomp; "" while nobody has said.
    background: of the requests that are computed or wait, those that give way to others.
    work: what it has done so far.
    """

    id: str
    model: str
    state: WorkerState
    progress: float
    ctx: int
    slots: int
    slots_free: int
    queued: int
    idle_s: float | None
    keep_alive_s: float | None = None
    device: str = ""
    error: dict[str, Any] | None = None
    leases: tuple[Lease, ...] = ()
    served: tuple[Served, ...] = ()
    sandbox: str = ""
    background: int = 0
    work: Work = dataclasses.field(default_factory=Work)


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterFile:
    """A LoRA adapter to load. name: its ref. scale: how strongly it is applied where a request does not say."""

    name: str
    path: str
    scale: float


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process reads on stdin: one JSON object, then the end.

    ctx and slots are resolved, whatever `options` leaves open: tokens per slot, and requests computed at once.
    keeper: the id of the one that asked for it, whose lease is the first. home: whose audit log the worker writes
    itself once its hive is gone; "" for none. secret: for its socket for keepers, "" for no such socket. sandbox: as in
    SpawnRequest. adapters: in the order of their ids.
    """

    id: str
    model: str
    path: str
    socket: str
    options: WorkerOptions
    ctx: int
    keep_alive_s: float
    slots: int = 1
    queue: int = 64
    keeper: str = ""
    home: str = ""
    secret: str = dataclasses.field(default="", repr=False)
    sandbox: str = "auto"
    adapters: tuple[AdapterFile, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class SlotMemory:
    """What a slot's memory holds of a prompt that came with a JSON body. digests: of its start, as `prompt_digests`
    gives them, as far as the memory reaches; empty for one that came otherwise, or for an empty slot."""

    slot: int
    digests: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerNews:
    """Event `news` of GET /v1/news on a worker's socket: at once, and then at each change.

    slots: those whose memory is another than in the event before; all of them in the first. typical_s: seconds that a
    request takes in its slot, of late; 0 while unknown.
    """

    status: WorkerStatus
    slots: tuple[SlotMemory, ...] = ()
    typical_s: float = 0.0
