"""Whether a worker that failed a request can be asked again: its node is connected, and it is among those that run."""

from __future__ import annotations

import asyncio

from rbee.gateway.base.interfaces import Fleet
from rbee.gateway.base.views import NodeState, WorkerKey


def is_there(fleet: Fleet, key: WorkerKey) -> bool:
    node = next((each for each in fleet.nodes if each.name == key.node), None)
    return node is not None and node.state is NodeState.UP and any(each.key == key for each in node.workers)


async def until_back(fleet: Fleet, key: WorkerKey, seconds: float, *, after: int | None = None) -> bool:
    """Wait until it is there; False where it is not, `seconds` later.

    after: a version of the fleet that is not to be trusted, since a connection that it told of has failed.
    """
    try:
        async with asyncio.timeout(seconds):
            while fleet.version == after or not is_there(fleet, key):
                await fleet.wait_changed(fleet.version)
    except TimeoutError:
        return False
    return True
