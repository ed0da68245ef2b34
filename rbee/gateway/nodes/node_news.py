"""What the hive of a node and its workers said last, made into views of the workers. Pure.

Rules
- The hive says which workers there are, and of one that ends or has failed it has the last word.
- Of a worker that serves the worker itself knows better: how many slots are free, and what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rbee.gateway.base.views import WorkerKey, WorkerView
from rbee_remote.protocol import HiveNews, ModelInfo, WorkerInfo, WorkerNews, WorkerState, WorkerStatus
from rbee_remote.protocol.load_options import MOST_SLOTS

#: A worker that takes requests.
SERVING = frozenset({WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY})


@dataclass(slots=True)
class OwnNews:
    """What a worker said itself. silent: it says nothing, and should. doubtful: it failed a request, and has not been
    heard since."""

    status: WorkerStatus | None = None
    held: dict[int, tuple[str, ...]] = field(default_factory=dict)
    typical_s: float = 0.0
    silent: bool = False
    doubtful: bool = False


@dataclass(slots=True)
class NodeNews:
    """models: the catalog by ref, as it was told last. workers: by id. own: what those said themselves, by id."""

    models: dict[str, ModelInfo] = field(default_factory=dict)
    workers: dict[str, WorkerInfo] = field(default_factory=dict)
    own: dict[str, OwnNews] = field(default_factory=dict)

    @property
    def serving(self) -> set[str]:
        return {worker_id for worker_id, info in self.workers.items() if info.state in SERVING}

    def of_hive(self, news: HiveNews) -> None:
        self.workers = {info.id: info for info in news.workers}
        if news.models is not None:
            self.models = {model.model: model for model in news.models}
        self.own = {worker_id: self.own.get(worker_id) or OwnNews() for worker_id in self.workers}

    def of_start(self, info: WorkerInfo, model: ModelInfo) -> None:
        """What whoever started a worker was told of it; the hive's own news may come a moment later."""
        self.workers = {**self.workers, info.id: info}
        self.models = {**self.models, model.model: model}
        self.own.setdefault(info.id, OwnNews())

    def of_worker(self, worker_id: str, news: WorkerNews) -> None:
        if own := self.own.get(worker_id):
            own.status, own.typical_s, own.silent, own.doubtful = news.status, news.typical_s, False, False
            own.held |= {memory.slot: memory.digests for memory in news.slots if 0 <= memory.slot < MOST_SLOTS}

    def no_hive(self) -> None:
        """The hive has ended, and with it its workers, but for those that still do what they do."""
        self.workers, self.own = {}, {}

    def views(self, node: str, in_flight: Mapping[str, int]) -> tuple[WorkerView, ...]:
        """In the hive's order, without those that are in doubt."""
        return tuple(
            self._view(WorkerKey(node, worker_id), info, in_flight.get(worker_id, 0))
            for worker_id, info in self.workers.items()
            if not self.own[worker_id].doubtful
        )

    def trust(self) -> None:
        """No worker is in doubt."""
        for own in self.own.values():
            own.doubtful = False

    def in_doubt(self, node: str) -> frozenset[WorkerKey]:
        """Of those that the hive says to serve: of one that has failed there is no doubt."""
        return frozenset(WorkerKey(node, worker_id) for worker_id in self.serving if self.own[worker_id].doubtful)

    def _view(self, key: WorkerKey, info: WorkerInfo, in_flight: int) -> WorkerView:
        own = self.own[key.id]
        said = own.status if own.status and info.state in SERVING else info
        return WorkerView(
            key=key,
            model=info.model,
            state=said.state,
            ctx=info.ctx,
            slots=info.slots,
            slots_free=said.slots_free,
            sha256=info.sha256,
            queued=own.status.queued if own.status else 0,
            in_flight=in_flight,
            progress=info.progress,
            held=tuple(own.held.get(slot, ()) for slot in range(min(info.slots, MOST_SLOTS))),
            typical_s=own.typical_s,
            idle_s=said.idle_s,
            options=info.options,
            background=own.status.background if own.status else 0,
        )
