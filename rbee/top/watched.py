"""One node as it is watched: what its hive tells, made into rows. Pure: whoever listens hands it over.

Rules
- Rates come from counters and the node's own clock: an event that comes late makes none of them wrong.
- A node that is lost keeps what was last known of its machine, and none of its workers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rbee.node.probe import Probe
from rbee.top.model import HISTORY_S, GpuRow, NodeRow, NodeState, WorkerRow, summed
from rbee_remote.protocol import HiveNews, NodeLoad, WorkerInfo, WorkerLoad

#: Readings that a rate is taken over: seconds.
RATE_OVER = 5
#: Seconds between two readings at least; a hive has one each second. What a node says of no time at all would be a rate
#: without bounds, and infinity in every sum.
LEAST_S = 0.1


@dataclass(slots=True)
class _Counted:
    """A counter that grows: its rate, and what it was for each second."""

    readings: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_OVER + 1))
    history: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY_S))
    rate: float = 0.0

    def add(self, at: float, count: int) -> None:
        readings = self.readings
        if readings and (at <= readings[-1][0] or count < readings[-1][1]):
            readings.clear()  # another clock, or another count: the node, or the worker, began anew
        if readings:
            before, then = readings[-1]
            if at - before < LEAST_S:
                return
            self.history.append((count - then) / (at - before))
        readings.append((at, count))
        first, began = readings[0]
        self.rate = (count - began) / (at - first) if at > first else 0.0


@dataclass(slots=True)
class WatchedNode:
    """tags: of the inventory. heard_load: readings since it is up, which is since up_at. Whoever changes it does so by
    its methods; times are of one monotonic clock."""

    name: str
    tags: tuple[str, ...] = ()
    state: NodeState = NodeState.CONNECTING
    why: str = ""
    retry_at: float | None = None
    heard_load: int = 0
    up_at: float = 0.0
    _infos_at: float = 0.0
    _infos: dict[str, WorkerInfo] = field(default_factory=dict)
    _loads: dict[str, WorkerLoad] = field(default_factory=dict)
    _counted: dict[str, _Counted] = field(default_factory=dict)
    _load: NodeLoad | None = None
    _probe: Probe | None = None
    _row: NodeRow | None = None

    # --- what happens -------------------------------------------------------------------------------------------

    def trying(self, why: str = "") -> None:
        """It is being connected to. why: what the last try failed with."""
        if self.state is not NodeState.CONNECTING or why != self.why:
            self._set(NodeState.CONNECTING, why)

    def probed(self, probe: Probe) -> None:
        self._probe = probe
        self._row = None

    def no_hive(self, retry_at: float | None = None) -> None:
        """Nothing of rbee runs there."""
        self._forget_workers()
        self._set(NodeState.NO_HIVE, "", retry_at)

    def lost(self, why: str, retry_at: float | None = None) -> None:
        self._forget_workers()
        self._set(NodeState.DOWN, why, retry_at)

    def told(self, told: HiveNews | NodeLoad, now: float) -> None:
        """An event of its hive."""
        if isinstance(told, HiveNews):
            self._infos_at = now
            self._infos = {info.id: info for info in told.workers}
            for gone in self._counted.keys() - self._infos.keys():
                del self._counted[gone]
        else:
            self.heard_load += 1
            self._load = told
            self._loads = {load.id: load for load in told.workers if load.id in self._infos}
            for load in self._loads.values():
                self._counted.setdefault(load.id, _Counted()).add(told.at, load.work.generated)
        if self.state is NodeState.UP:
            self._row = None
        else:
            self.up_at = now
            self._set(NodeState.UP, "")

    def _forget_workers(self) -> None:
        self._infos, self._loads, self._counted = {}, {}, {}
        self.heard_load = 0

    def _set(self, state: NodeState, why: str, retry_at: float | None = None) -> None:
        self.state, self.why, self.retry_at, self._row = state, why, retry_at, None

    # --- what is known ------------------------------------------------------------------------------------------

    def worker(self, worker_id: str) -> WorkerInfo | None:
        return self._infos.get(worker_id)

    def row(self, now: float) -> NodeRow:
        """now: on the clock of `retry_at`."""
        if self._row is None:
            self._row = self._made(now)
        if self.retry_at is None:
            return self._row
        return replace(self._row, retry_s=max(0.0, self.retry_at - now))

    def _made(self, now: float) -> NodeRow:
        """In one go: of a thousand nodes each is made anew every second."""
        passed = max(0.0, now - self._infos_at)
        workers = tuple([self._worker_row(info, passed) for info in self._infos.values()])
        machine = self._machine()
        return NodeRow(
            name=self.name,
            state=self.state,
            why=self.why,
            tags=self.tags,
            cores=machine.cores,
            cpu=machine.cpu,
            ram_total_mb=machine.ram_total_mb,
            ram_used_mb=machine.ram_used_mb,
            gpus=machine.gpus,
            workers=workers,
            rate=sum([worker.rate for worker in workers]),
            history=_together([worker.history for worker in workers]),
        )

    def _machine(self) -> _Machine:
        """What is known of it; of one that is lost nothing."""
        if self.state is NodeState.DOWN:
            return _Machine()
        if self._load is not None and self.state is NodeState.UP:
            return _of_load(self._load)
        return _Machine() if self._probe is None else _of_probe(self._probe)

    def _worker_row(self, info: WorkerInfo, passed_s: float) -> WorkerRow:
        """passed_s: since that was told."""
        load, counted = self._loads.get(info.id), self._counted.get(info.id)
        return WorkerRow(
            node=self.name,
            id=info.id,
            model=info.model,
            state=info.state.value,
            device=info.device,
            slots=info.slots,
            running=load.running if load else info.slots - info.slots_free if info.state.value in _COUNTS else 0,
            queued=load.queued if load else 0,
            rate=counted.rate if counted else 0.0,
            history=tuple(counted.history) if counted else (),
            first_token_s=load.work.first_token_s if load else 0.0,
            ctx=info.ctx,
            rss_mb=(load.rss_mb if load else 0) or info.rss_mb,
            progress=info.progress,
            idle_s=None if info.idle_s is None else info.idle_s + passed_s,
            requests=load.work.requests if load else 0,
            generated=load.work.generated if load else 0,
            note=str((info.error or {}).get("message", "")),
        )


#: States of a worker in which its free slots say something.
_COUNTS = frozenset({"idle", "ready", "busy"})


def _together(histories: list[tuple[float, ...]]) -> tuple[float, ...]:
    return histories[0] if len(histories) == 1 else summed(histories)


class _Machine(NamedTuple):
    """As `NodeRow` has it."""

    cores: int = 0
    cpu: float | None = None
    ram_total_mb: int = 0
    ram_used_mb: int = 0
    gpus: tuple[GpuRow, ...] = ()


def _of_load(load: NodeLoad) -> _Machine:
    gpus = tuple([GpuRow(gpu.name, gpu.total_mb, gpu.used_mb, gpu.use) for gpu in load.gpus])
    return _Machine(load.cores, load.cpu, load.ram_total_mb, load.ram_used_mb, gpus)


def _of_probe(probe: Probe) -> _Machine:
    """What was found when it was connected to: nobody tells how busy it is."""
    gpus = tuple(
        GpuRow(gpu.name, gpu.memory_total_mb, max(0, gpu.memory_total_mb - gpu.memory_free_mb), None)
        for gpu in probe.gpus
    )
    used = max(0, probe.ram_total_mb - probe.ram_available_mb)
    return _Machine(probe.cores, None, probe.ram_total_mb, used, gpus)
