"""What to do when a model is asked for: pure decisions over values.

Rules
- A worker for the same model that has the options asked for is always reused, a busy one too: it queues. What was left
  open matches whatever the worker got: one that has fewer slots because memory was short is found again. A context that
  was named is what a request needs: a worker with more serves too, of several the one with least.
- Only workers that nobody uses are evicted, the one that was used longest ago first, and none in vain.
- What a stopping worker holds counts until it is gone: the answer is then to wait, and to decide again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeVar

from rbee_remote.protocol import WorkerOptions, WorkerState
from rbee_remote.protocol.load_options import AUTO_CTX, DEFAULT_CTX, is_open

#: Bytes.
MB = 10**6
RAM, VRAM = "ram", "vram"


def matches(has: WorkerOptions, given: WorkerOptions, asked: WorkerOptions) -> bool:
    """Whether a worker's options are those that are `asked` for. has: resolved. given: as they were asked for."""
    for field in fields(asked):
        wanted = getattr(asked, field.name)
        if field.name == "ctx" and wanted == AUTO_CTX:
            if given.ctx != AUTO_CTX:
                return False
        elif field.name == "ctx" and wanted is None:
            if given.ctx is not None and (has.ctx or 0) < DEFAULT_CTX:
                return False
        elif field.name == "ctx":
            if (has.ctx or 0) < wanted:
                return False
        elif not is_open(field.name, wanted) and wanted != getattr(has, field.name):
            return False
    return True


@dataclass(frozen=True, slots=True)
class WorkerKey:
    """What a worker is. path: the model's file. options: every field resolved; asked: as they were asked for, with open
    what rbee chose by the memory there was. adapters: their files."""

    model: str
    path: str
    options: WorkerOptions
    asked: WorkerOptions
    adapters: tuple[str, ...] = ()

    def serves(self, demand: WorkerKey) -> bool:
        """Whether the worker of this key does what `demand` asks; it need not be what would be started for it now."""
        same = (self.model, self.path, self.adapters) == (demand.model, demand.path, demand.adapters)
        return same and matches(self.options, self.asked, demand.asked)


class Worker(Protocol):
    @property
    def key(self) -> WorkerKey: ...
    @property
    def state(self) -> WorkerState: ...


W = TypeVar("W", bound=Worker)


def find_serving(demand: WorkerKey, live: Iterable[W]) -> W | None:
    """The worker that does what `demand` asks. live: in the order in which they were started."""
    found = [each for each in live if each.key.serves(demand) and each.state is not WorkerState.STOPPING]
    if demand.asked.ctx is None:
        return next(iter(found), None)
    return min(found, key=lambda each: each.key.options.ctx or 0, default=None)


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as far as decisions need it. memory_mb: what its end sets free, of `memory`; of `gpus`, where they are
    known, in these shares, else in equal parts. last_used: any clock."""

    id: str
    key: WorkerKey
    state: WorkerState
    in_use: bool
    last_used: float
    memory: str
    memory_mb: int
    gpus: frozenset[str] = frozenset()
    shares: tuple[tuple[str, float], ...] = ()

    def frees_mb(self, memory: str, gpus: frozenset[str]) -> int:
        """Of `memory`, and of those GPUs where their memory is meant."""
        if self.memory != memory:
            return 0
        if memory != VRAM or not gpus or not self.gpus:
            return self.memory_mb
        shares = dict(self.shares) or dict.fromkeys(self.gpus, 1.0)
        # Not by share and sum: all of it is to be exactly all.
        elsewhere = sum(share for gpu, share in shares.items() if gpu not in gpus)
        return self.memory_mb - math.ceil(self.memory_mb * elsewhere / sum(shares.values()))


@dataclass(frozen=True, slots=True)
class Demand:
    """free_mb: what a further worker could take of `memory` right now, on `gpus` where it is theirs. max_workers: None
    for no limit."""

    key: WorkerKey
    memory: str
    needed_mb: int
    free_mb: int
    max_workers: int | None
    gpus: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reuse:
    worker: str


@dataclass(frozen=True, slots=True)
class Spawn:
    pass


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Stop the workers `evict`, wait until they and the ones in `await_end` are gone, decide again."""

    evict: tuple[str, ...]
    await_end: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoSlot:
    """max_workers is reached, and every worker is in use."""

    workers: int


@dataclass(frozen=True, slots=True)
class NoMemory:
    """available_mb: with every evictable worker gone. later_mb: with the ones in use gone, too."""

    needed_mb: int
    available_mb: int
    later_mb: int


Decision = Reuse | Spawn | MakeRoom | NoSlot | NoMemory


def decide(demand: Demand, workers: Iterable[WorkerView]) -> Decision:
    """`workers`: all of the hive's, failed ones included, which count for nothing."""
    live = [worker for worker in workers if worker.state is not WorkerState.FAILED]
    if serving := find_serving(demand.key, live):
        return Reuse(serving.id)
    if _has_room(demand, live, gone=()):
        return Spawn()
    stopping = [worker for worker in live if worker.state is WorkerState.STOPPING]
    if _has_room(demand, live, gone=stopping):
        return MakeRoom((), tuple(worker.id for worker in stopping))
    evictable = [worker for worker in live if not worker.in_use and worker.state is not WorkerState.STOPPING]
    evicted = _evict(demand, live, stopping, sorted(evictable, key=lambda worker: worker.last_used))
    if evicted is not None:
        return MakeRoom(tuple(worker.id for worker in evicted), tuple(worker.id for worker in stopping))
    return _refusal(demand, live, gone=[*stopping, *evictable])


def _evict(
    demand: Demand, live: Sequence[WorkerView], stopping: Sequence[WorkerView], candidates: Sequence[WorkerView]
) -> list[WorkerView] | None:
    """The least recently used candidates that make room, without those that it turns out to work without."""
    for count in range(1, len(candidates) + 1):
        if _has_room(demand, live, gone=[*stopping, *candidates[:count]]):
            break
    else:
        return None
    chosen = list(candidates[:count])
    for worker in reversed(candidates[:count]):
        rest = [other for other in chosen if other is not worker]
        if _has_room(demand, live, gone=[*stopping, *rest]):
            chosen = rest
    return chosen


def _has_room(demand: Demand, live: Sequence[WorkerView], gone: Sequence[WorkerView]) -> bool:
    slot = demand.max_workers is None or len(live) - len(gone) < demand.max_workers
    return slot and demand.needed_mb <= demand.free_mb + held_mb(gone, demand.memory, demand.gpus)


def held_mb(workers: Iterable[WorkerView], memory: str, gpus: frozenset[str] = frozenset()) -> int:
    return sum(worker.frees_mb(memory, gpus) for worker in workers)


def _refusal(demand: Demand, live: Sequence[WorkerView], gone: Sequence[WorkerView]) -> NoSlot | NoMemory:
    available = demand.free_mb + held_mb(gone, demand.memory, demand.gpus)
    if demand.needed_mb > available:
        return NoMemory(demand.needed_mb, available, demand.free_mb + held_mb(live, demand.memory, demand.gpus))
    return NoSlot(len(live))
