"""What routing decides on, beside what a request wants: the nodes, and what was learned by watching them. Values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rbee.base.errors import RbeeError
from rbee.gateway.base.views import NodeView, Target, WorkerKey, WorkerView
from rbee.infer.placement import is_loaded_as, loaded_as
from rbee_remote.protocol import LoadOptions, WorkerState
from rbee_remote.protocol.load_options import AUTO_CTX, DEFAULT_CTX

#: Until they were measured: bytes that a second of loading reads, and seconds that come on top.
LOAD_RATE, LOAD_OVERHEAD_S = 200e6, 2.0

SERVES = frozenset({WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY})
LOADS = frozenset({WorkerState.STARTING, WorkerState.LOADING})


@dataclass(frozen=True, slots=True)
class Send:
    worker: WorkerView


@dataclass(frozen=True, slots=True)
class Start:
    node: str
    target: Target


@dataclass(frozen=True, slots=True)
class Wait:
    """loading: share that is loaded, None where slots or a place are waited for. about_s: seconds for the queue's
    first, each_s: for each one behind it; 0 for unknown. gives_way: workers that get nothing younger meanwhile."""

    loading: float | None = None
    about_s: float = 0.0
    each_s: float = 0.0
    gives_way: frozenset[WorkerKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Refuse:
    error: RbeeError


Decision = Send | Start | Wait | Refuse


class Load(NamedTuple):
    """A model, loaded in some way on a node, by somebody who needs this ability of it: as in `Target`."""

    node: str
    model: str
    options: LoadOptions
    ability: str = ""

    @property
    def by_anybody(self) -> Load:
        """The same, whatever it is needed for: of several there comes one worker."""
        return self._replace(ability="")


class Rivals(NamedTuple):
    """Two models that have been found not to be loaded on a node at once."""

    node: str
    models: frozenset[str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a worker from watching it. up_s: seconds since it serves. quiet_s: seconds since it had anything
    to do. others: requests of others that it has; None for as it says."""

    up_s: float = 0.0
    quiet_s: float = 0.0
    others: int | None = None


_UNSEEN = Seen()


@dataclass(frozen=True, slots=True)
class Situation:
    """starting: loads under way, with the seconds that they have taken. failed: loads that are not tried now, and why;
    passing: those of them that are worth waiting for.
    made: workers that a node gave for a load, which therefore serve it. held: those that give way to a request before.
    """

    nodes: Sequence[NodeView]
    starting: Mapping[Load, float] = field(default_factory=dict)
    failed: Mapping[Load, RbeeError] = field(default_factory=dict)
    passing: frozenset[Load] = frozenset()
    made: frozenset[tuple[WorkerKey, LoadOptions]] = frozenset()
    rivals: frozenset[Rivals] = frozenset()
    held: frozenset[WorkerKey] = frozenset()
    seen: Mapping[WorkerKey, Seen] = field(default_factory=dict)

    def watched(self, worker: WorkerView) -> Seen:
        return self.seen.get(worker.key, _UNSEEN)


def room(worker: WorkerView, seen: Seen = _UNSEEN, *, background: bool = False) -> int:
    """Free slots. The worker's own count lags behind by its way here, so that ours comes first.

    background: for a request that gives way to others; for any other the slots of those that do are free."""
    gives_way = 0 if background else worker.background
    if seen.others is not None:
        return worker.slots - worker.in_flight - max(0, seen.others - gives_way)
    told = worker.slots - worker.slots_free + worker.queued - gives_way
    return worker.slots - max(worker.in_flight, told)


def serves(node: NodeView, worker: WorkerView, target: Target, now: Situation) -> bool:
    """Whether a worker is one for the target: its model, loaded as the target or else the node's entry says."""
    if worker.model != target.model:
        return False
    if (worker.key, target.load) in now.made:
        return True
    wanted = target.load.over(node.load)
    if wanted.ctx == AUTO_CTX:
        return False  # only the hive knows whether more would fit
    info = node.models.get(target.model)
    if wanted.ctx is None and info and not info.meta.is_whole and worker.ctx < min(DEFAULT_CTX, info.meta.n_ctx_train):
        return False  # somebody wanted just that
    return is_loaded_as(wanted, worker.ctx, worker.slots, loaded_as(worker.options))


def load(worker: WorkerView, now: Situation) -> float:
    """The share of its slots that is taken."""
    return 1 - room(worker, now.watched(worker)) / worker.slots


def load_s(node: NodeView, model: str) -> float:
    """Seconds that loading a model takes there, as far as can be told."""
    if measured := node.load_s.get(model, 0.0):
        return measured
    info = node.models.get(model)
    return LOAD_OVERHEAD_S + (info.size / LOAD_RATE if info else 0.0)
