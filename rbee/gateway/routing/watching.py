"""What is learned of workers by watching the fleet: since when each serves, how long it has had nothing to do, how much
others ask of it, and which models a node does not hold at once. Pure, but for what it remembers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rbee.gateway.base.views import NodeState, NodeView, WorkerKey, WorkerView
from rbee.gateway.routing.situation import LOADS, SERVES, Rivals, Seen

#: Seconds in which a worker's word of what it has to do follows on what we sent it, over any line that is of use.
LAG_S = 1.0


@dataclass(slots=True)
class _Watched:
    """told: slots taken and requests queued, as the worker said last. moved_at: when that, or what we have there, was
    another for the last time."""

    up_at: float
    used_at: float
    moved_at: float
    told: int
    others: int


class Watch:
    """Told of the nodes at each change, and of requests that begin and end."""

    def __init__(self) -> None:
        self._workers: dict[WorkerKey, _Watched] = {}
        self._rivals: set[Rivals] = set()

    @property
    def rivals(self) -> frozenset[Rivals]:
        return frozenset(self._rivals)

    def look(self, nodes: Sequence[NodeView], now: float) -> None:
        """now: seconds on a clock that does not jump."""
        serving = {worker.key: worker for node in nodes for worker in node.workers if worker.state in SERVES}
        up = {node.name for node in nodes if node.state is NodeState.UP}
        for key in [key for key in self._workers if key not in serving and key.node in up]:
            del self._workers[key]
        known = {node.name for node in nodes}
        for key in [key for key in self._workers if key.node not in known]:
            del self._workers[key]
        self._rivals = {each for each in self._rivals if each.node in known}
        for worker in serving.values():
            self._look_at(worker, now)
        for node in nodes:
            together = {worker.model for worker in node.workers if worker.state in SERVES}
            self._rivals -= {each for each in self._rivals if each.node == node.name and each.models <= together}

    def used(self, key: WorkerKey, now: float) -> None:
        """A request of ours begins or ends there."""
        if watched := self._workers.get(key):
            watched.used_at = watched.moved_at = now

    def seen(self, now: float) -> dict[WorkerKey, Seen]:
        return {key: Seen(now - each.up_at, now - each.used_at, each.others) for key, each in self._workers.items()}

    def do_not_fit(self, node: str, model: str, others: Iterable[str]) -> None:
        """The node had no place for the model beside these."""
        self._rivals.update(Rivals(node, frozenset({model, other})) for other in others if other != model)

    def _look_at(self, worker: WorkerView, now: float) -> None:
        told = worker.slots - worker.slots_free + worker.queued
        watched = self._workers.get(worker.key)
        if watched is None:  # one that was there before us may have served for long, and be idle for as long
            idle_s = worker.idle_s or 0.0
            watched = self._workers[worker.key] = _Watched(now - idle_s, now - idle_s, now, -1, 0)
        if told != watched.told:  # what it says counts ours, too, as of a moment ago
            watched.told, watched.others = told, max(0, told - worker.in_flight)
            watched.moved_at = now
        elif now - watched.moved_at >= LAG_S:  # by now it counts what we have there as we do
            watched.others = max(0, told - worker.in_flight)
        if told:
            watched.used_at = now


def loaded_models(node: NodeView) -> set[str]:
    """Of the workers that take the node's memory."""
    return {worker.model for worker in node.workers if worker.state in SERVES | LOADS}
