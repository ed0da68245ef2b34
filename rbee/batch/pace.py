"""How many lines are asked at once: what the workers' slots hold, and a little more, which waits in the gateway's queue
so that no slot stands empty. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rbee.gateway.base.views import NodeState, NodeView
from rbee.gateway.routing.situation import LOADS, SERVES

#: Before any worker is known: enough to have the model loaded.
FIRST = 2
#: More than the slots hold, as a share of them, with a least and a most: the gateway has a bound for what waits.
_MORE, _LEAST_MORE, _MOST_MORE = 0.25, 2, 64


def at_once(nodes: Iterable[NodeView], models: frozenset[str]) -> int:
    """models: refs that lines ask for; empty for any."""
    slots = sum(
        worker.slots
        for node in nodes
        if node.state is NodeState.UP
        for worker in node.workers
        if worker.state in SERVES and (not models or worker.model in models)
    )
    if not slots:
        return FIRST
    return slots + max(_LEAST_MORE, min(_MOST_MORE, int(slots * _MORE)))


def doing(nodes: Iterable[NodeView]) -> str:
    """What is waited for while nobody answers, as a clause; "" where workers serve."""
    seen = list(nodes)
    workers = [(node, worker) for node in seen if node.state is NodeState.UP for worker in node.workers]
    if any(worker.state in SERVES for _, worker in workers):
        return ""
    loading = [
        f"{worker.model} on {node.name} ({worker.progress:.0%})" for node, worker in workers if worker.state in LOADS
    ]
    if loading:
        return f"loading {', '.join(loading[:3])}"
    if any(node.state is NodeState.UP for node in seen):
        return "waiting for a worker"
    down = [f"{node.name}: {node.reason}" for node in seen if node.reason]
    return f"no node can be reached ({'; '.join(down[:2])})" if down else "connecting"
