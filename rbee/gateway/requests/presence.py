"""Who is there: whether a worker that failed a request can be asked again (its node is connected, and it is among those
that run), whether any runs for a model, and whether all nodes were heard of that may be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import TypeVar

from rbee.base.errors import NodeError
from rbee.gateway.base.interfaces import Fleet
from rbee.gateway.base.views import NodeState, NodeView, Target, WorkerKey
from rbee.gateway.routing.situation import SERVES

T = TypeVar("T")


def is_there(fleet: Fleet, key: WorkerKey) -> bool:
    node = next((each for each in fleet.nodes if each.name == key.node), None)
    return node is not None and node.state is NodeState.UP and _serves(node, key)


def is_gone(fleet: Fleet, key: WorkerKey) -> bool:
    """Whether its node is connected and has no such worker that serves."""
    node = next((each for each in fleet.nodes if each.name == key.node), None)
    if node is None:
        return True
    return node.state is NodeState.UP and key not in node.in_doubt and not _serves(node, key)


def _serves(node: NodeView, key: WorkerKey) -> bool:
    return any(each.key == key and each.state in SERVES for each in node.workers)


async def until_back(fleet: Fleet, key: WorkerKey, seconds: float, *, after: int | None = None) -> bool:
    """Wait until it is there; False where it is not, `seconds` later, or as soon as it is known to be gone.

    after: a version of the fleet that is not to be trusted, since a connection that it told of has failed.
    """
    try:
        async with asyncio.timeout(seconds):
            while fleet.version == after or not is_there(fleet, key):
                if fleet.version != after and is_gone(fleet, key):
                    return False
                await fleet.wait_changed(fleet.version)
    except TimeoutError:
        return False
    return True


def has_worker(fleet: Fleet, targets: Iterable[Target]) -> bool:
    """Whether any worker has one of the models, in whatever state."""
    models = {target.model for target in targets}
    return any(worker.model in models for node in fleet.nodes for worker in node.workers)


async def when_known(fleet: Fleet, seconds: float, find: Callable[[], T]) -> T:
    """What is found, just after the start once nodes were heard of. Raises NodeError as `find` does."""
    try:
        return find()
    except NodeError:
        if not await until_known(fleet, seconds):
            raise
    return find()


async def until_known(fleet: Fleet, seconds: float) -> bool:
    """Wait until each node was reached, or could not be, for the first time, so long at most; False where no node had
    to be waited for."""
    seen = fleet.version
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while any(node.state is NodeState.CONNECTING for node in fleet.nodes):
                await fleet.wait_changed(fleet.version)
    return fleet.version != seen
