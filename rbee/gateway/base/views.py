"""What the gateway knows of its nodes and workers at one moment, and what a request needs of them: values, so that
names, routing and queues decide without touching a node."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rbee_remote.protocol import LoadOptions, ModelInfo, WorkerOptions, WorkerState


class WorkerKey(NamedTuple):
    node: str
    id: str


class NodeState(enum.Enum):
    """CONNECTING: not known yet, or lost a moment ago. UP: connected. DOWN: the last try to connect failed, or the
    connection is silent."""

    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as its hive and itself told last. sha256: of its model's file, "" while unknown.

    slots_free, queued: as it said. in_flight: requests that this gateway has given it and that have not ended, counted
    at once, while the two before come a moment later. held: for each slot the digests (`prompt_digests`) of what its
    memory holds. typical_s: seconds that a request takes there, 0 while unknown. idle_s: seconds without a request.
    background: of the requests that it has, as it said, those that give way to others.
    """

    key: WorkerKey
    model: str
    state: WorkerState
    ctx: int
    slots: int
    slots_free: int
    sha256: str = ""
    queued: int = 0
    in_flight: int = 0
    progress: float = 0.0
    held: tuple[tuple[str, ...], ...] = ()
    typical_s: float = 0.0
    idle_s: float | None = None
    options: WorkerOptions | None = None
    background: int = 0


@dataclass(frozen=True, slots=True)
class NodeView:
    """models: the node's catalog by ref, as it was told last; also of a node that is down. max_workers: the
    inventory's limit. load_s: seconds that loading a model took there last, by ref. reason: why it is down, a clause.
    load: how the inventory says that models are loaded there; what a target says of it comes first. in_doubt: workers
    beside `workers` that are said to serve, but have failed a request and were not heard since: they may be gone.
    """

    name: str
    state: NodeState
    tags: frozenset[str] = frozenset()
    models: Mapping[str, ModelInfo] = field(default_factory=dict)
    workers: tuple[WorkerView, ...] = ()
    max_workers: int | None = None
    load_s: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    load: LoadOptions = field(default_factory=LoadOptions)
    in_doubt: frozenset[WorkerKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Target:
    """One way to serve a request. model: a canonical ref. nodes: names of those that may, in the inventory's order.

    load, keep_alive_s: for a worker that has to be started; one that runs has to have been loaded like that.
    ability: what the model has to be able to do, as far as its file alone will tell: one that turns out to be made for
    something else is neither fetched whole nor loaded. "" where nothing is left to be told.
    """

    model: str
    nodes: tuple[str, ...]
    load: LoadOptions = field(default_factory=LoadOptions)
    keep_alive_s: float | None = None
    ability: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs of a worker. targets: in order; a later one only where none before can serve.

    digests: of its prompt. priority: higher is served first; 0 as a rule. deadline: on `time.monotonic`'s clock, after
    which nobody waits any more. sha256: only workers with this model file, for an answer that goes on; "" for any.
    avoid: workers that have failed this very request. client: the name of the key that asks, for people; "" for none.
    background: of a batch: it gives way to others at its worker, and is worth a worker on each node that has room.
    fetches: there also on nodes that have not got the model's file yet.
    """

    targets: tuple[Target, ...]
    digests: tuple[str, ...] = ()
    priority: int = 0
    deadline: float | None = None
    sha256: str = ""
    avoid: frozenset[WorkerKey] = frozenset()
    client: str = ""
    background: bool = False
    fetches: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a request waits for. place: in its model's queue, 1 for the next. loading: share of the model that is
    loaded, None where it waits for a slot. about_s: seconds that it will take, as far as can be told; 0 for unknown."""

    place: int = 1
    loading: float | None = None
    about_s: float = 0.0
