"""Which nodes and workers are shown, and in which order. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from rbee.top.model import NodeRow, NodeState, WorkerRow

Row = NodeRow | WorkerRow


class RowKey(NamedTuple):
    """Names a row, whatever else changes of it. worker: "" for the node's own."""

    node: str
    worker: str = ""


class Sort(enum.Enum):
    """INVENTORY: as the inventory has them. The others have the largest first."""

    INVENTORY = "inventory"
    RATE = "tok/s"
    QUEUE = "queue"
    MEMORY = "memory"
    CPU = "cpu/gpu"
    STATE = "state"
    NAME = "name"

    @property
    def next(self) -> Sort:
        members = list(Sort)
        return members[(members.index(self) + 1) % len(members)]


#: What needs somebody comes first.
_STATES = (NodeState.DOWN, NodeState.CONNECTING, NodeState.UP, NodeState.NO_HIVE)

_NODE_ORDER: dict[Sort, Callable[[NodeRow], Any]] = {
    Sort.RATE: lambda node: -node.rate,
    Sort.QUEUE: lambda node: (-node.queued, -node.running),
    Sort.MEMORY: lambda node: -(sum(gpu.used_mb for gpu in node.gpus) or node.ram_used_mb),
    Sort.CPU: lambda node: -max(node.gpu_use or 0.0, node.cpu or 0.0),
    Sort.STATE: lambda node: _STATES.index(node.state),
    Sort.NAME: lambda node: node.name,
}
_WORKER_ORDER: dict[Sort, Callable[[WorkerRow], Any]] = {
    Sort.RATE: lambda worker: -worker.rate,
    Sort.QUEUE: lambda worker: (-worker.queued, -worker.running),
    Sort.MEMORY: lambda worker: -worker.rss_mb,
    Sort.STATE: lambda worker: worker.state,
    Sort.NAME: lambda worker: worker.model,
}


def key_of(row: Row) -> RowKey:
    return RowKey(row.name) if isinstance(row, NodeRow) else RowKey(row.node, row.id)


def rows(nodes: Sequence[NodeRow], sort: Sort, words: str) -> list[Row]:
    """Each node, and its workers below it. words: a filter, as `filtered` has it."""
    found = filtered(nodes, words) if words.strip() else nodes
    order = _NODE_ORDER.get(sort)
    return [row for node in (sorted(found, key=order) if order else found) for row in _with_workers(node, sort)]


def _with_workers(node: NodeRow, sort: Sort) -> Iterator[Row]:
    yield node
    order = _WORKER_ORDER.get(sort)
    yield from sorted(node.workers, key=order) if order and len(node.workers) > 1 else node.workers


def filtered(nodes: Sequence[NodeRow], words: str) -> list[NodeRow]:
    """Those that have every word in their name, state, tags or devices; with those of their workers that have the words
    in what they are, or all where the node itself has them."""
    wanted = words.lower().split()
    found = []
    for node in nodes:
        missing = [word for word in wanted if word not in _text_of_node(node)]
        if not missing:
            found.append(node)
        elif workers := tuple(worker for worker in node.workers if _has(worker, missing)):
            found.append(replace(node, workers=workers))
    return found


def _has(worker: WorkerRow, words: Sequence[str]) -> bool:
    text = f"{worker.id}\n{worker.model}\n{worker.state}\n{worker.device}".lower()
    return all(word in text for word in words)


def _text_of_node(node: NodeRow) -> str:
    tags = " ".join(f"@{tag}" for tag in node.tags)
    return "\n".join((node.name, node.state.value, tags, *(gpu.name for gpu in node.gpus))).lower()
