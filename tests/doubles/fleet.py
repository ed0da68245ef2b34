"""A fleet of nodes that load models and count requests, on the loop's clock, without any node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rbee.base.errors import NodeError
from rbee.gateway.base.interfaces import WorkerHttp
from rbee.gateway.base.views import NodeState, NodeView, Target, WorkerKey, WorkerView
from rbee_remote.protocol import ErrorCode, LoadOptions, ModelInfo, ModelMeta, WorkerState

SHA = "a" * 64


@dataclass(eq=False)
class ScriptedWorker:
    """in_flight: of the gateway. others: requests of somebody else."""

    key: WorkerKey
    model: str
    options: LoadOptions
    slots: int
    state: WorkerState = WorkerState.LOADING
    in_flight: int = 0
    others: int = 0
    held: tuple[tuple[str, ...], ...] = ()
    progress: float = 0.0

    def view(self, sha256: str) -> WorkerView:
        taken = min(self.slots, self.in_flight + self.others)
        state = self.state
        if state in (WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY):
            free = taken < self.slots
            state = WorkerState.IDLE if not taken else WorkerState.READY if free else WorkerState.BUSY
        return WorkerView(
            key=self.key,
            model=self.model,
            state=state,
            ctx=self.options.ctx or 4096,
            slots=self.slots,
            slots_free=self.slots - taken,
            sha256=sha256,
            in_flight=self.in_flight,
            progress=self.progress,
            held=self.held,
            typical_s=2.0,
            idle_s=None if taken else 0.0,
        )


@dataclass(eq=False)
class ScriptedNode:
    """places: workers that its memory holds, which nobody is told. fails: errors of the next loads, in turn."""

    name: str
    models: tuple[str, ...]
    slots: int = 2
    load_s: float = 4.0
    places: int = 100
    max_workers: int | None = None
    state: NodeState = NodeState.UP
    tags: frozenset[str] = frozenset()
    fails: list[Exception] = field(default_factory=list)
    workers: list[ScriptedWorker] = field(default_factory=list)

    def view(self) -> NodeView:
        meta = ModelMeta("llama", 30, 8192, 576, 49152, 3, 64, 64)
        return NodeView(
            name=self.name,
            state=self.state,
            tags=self.tags,
            models={name: ModelInfo(name, "/m", 10**8, SHA, True, "", 0.0, meta) for name in self.models},
            workers=tuple(worker.view(SHA) for worker in self.workers),
            max_workers=self.max_workers,
            load_s=dict.fromkeys(self.models, self.load_s),
        )


class ScriptedFleet:
    """As `interfaces.Fleet`. starts: (node, model) of each load that began, in order."""

    def __init__(self, nodes: Iterable[ScriptedNode]) -> None:
        self.scripted = {node.name: node for node in nodes}
        self.starts: list[tuple[str, str]] = []
        self.counts: dict[WorkerKey, list[int]] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._loads: dict[tuple[str, Target], asyncio.Future[WorkerKey]] = {}
        self._ids = 0

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        return tuple(node.view() for node in self.scripted.values())

    @property
    def version(self) -> int:
        return self._version

    async def wait_changed(self, seen: int) -> None:
        while self._version == seen:
            await self._changed.wait()

    def changed(self) -> None:
        """Something is another than it was."""
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def start_worker(self, node: str, target: Target) -> WorkerKey:
        scripted = self.scripted[node]
        for worker in scripted.workers:
            if (worker.model, worker.options) == (
                target.model,
                target.load,
            ) and worker.state is not WorkerState.LOADING:
                return worker.key
        self.starts.append((node, target.model))
        if scripted.fails:
            error = scripted.fails.pop(0)
            await asyncio.sleep(scripted.load_s / 2)
            raise error
        self._make_room(scripted)
        worker = self.add(node, target.model, load=target.load, state=WorkerState.LOADING)
        try:
            await asyncio.sleep(scripted.load_s)
        except asyncio.CancelledError:
            self.end(worker.key)
            raise
        worker.state = WorkerState.IDLE
        self.changed()
        return worker.key

    def add(self, node: str, model: str, *, load: LoadOptions | None = None, **fields: Any) -> ScriptedWorker:
        """A worker that is there; one that serves, unless the fields say otherwise."""
        self._ids += 1
        scripted = self.scripted[node]
        values: dict[str, Any] = {"state": WorkerState.IDLE, "slots": scripted.slots} | fields
        worker = ScriptedWorker(WorkerKey(node, f"{self._ids:016x}"), model, load or LoadOptions(), **values)
        scripted.workers.append(worker)
        self.changed()
        return worker

    def end(self, key: WorkerKey) -> None:
        """A worker is gone."""
        node = self.scripted[key.node]
        node.workers = [worker for worker in node.workers if worker.key != key]
        self.changed()

    def find(self, key: WorkerKey) -> ScriptedWorker | None:
        return next((worker for worker in self.scripted[key.node].workers if worker.key == key), None)

    def worker(self, key: WorkerKey) -> WorkerHttp:
        raise AssertionError("whoever places requests sends none")

    def failed(self, key: WorkerKey) -> None:
        raise AssertionError("whoever places requests does not see them fail")

    def begun(self, key: WorkerKey) -> None:
        self._count(key, 0, 1)

    def ended(self, key: WorkerKey) -> None:
        self._count(key, 1, -1)
        begun, ended = self.counts[key]
        assert ended <= begun, f"{key} ended more often than it began"

    def _count(self, key: WorkerKey, which: int, change: int) -> None:
        self.counts.setdefault(key, [0, 0])[which] += 1
        worker = self.find(key)
        if worker:
            worker.in_flight += change
            assert worker.in_flight <= worker.slots, f"{key} has more requests than slots"
            self.changed()

    def _make_room(self, node: ScriptedNode) -> None:
        """As a hive does: an idle worker ends; none is idle: NODE_BUSY."""
        while len(node.workers) >= min(node.places, node.max_workers or node.places):
            idle = [
                each for each in node.workers if each.state is WorkerState.IDLE and not each.in_flight + each.others
            ]
            if not idle:
                raise NodeError(ErrorCode.NODE_BUSY, f"{node.name} has no place for another model now")
            self.end(idle[0].key)
