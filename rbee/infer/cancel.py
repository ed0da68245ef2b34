"""Ctrl-C: what was begun on a node is ended there, as far as that can be done in a few seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Emit, Notice
from rbee.base.retries import CANCEL_TIMEOUT_S
from rbee.node.socket_http import HungUpError

#: What takes longer than this is told of.
_WORTH_A_WORD_S = 0.5


async def tell(
    node: str, telling: Coroutine[None, None, None], emit: Emit, *, otherwise: str, timeout_s: float = CANCEL_TIMEOUT_S
) -> None:
    """Run `telling`, which has the node stop. Best effort: nothing that node or network do is raised.

    otherwise: what happens on a node that could not be told, for the user ("the answer ends by itself").
    """
    task = asyncio.create_task(_quietly(telling), name="tell the node to stop")
    try:
        done, _ = await asyncio.wait({task}, timeout=_WORTH_A_WORD_S)
        if not done:
            emit(Notice(f"canceling: asking {node} to stop"))
            done, _ = await asyncio.wait({task}, timeout=timeout_s - _WORTH_A_WORD_S)
        if not (done and await task):
            emit(Notice(f"{node} could not be asked to stop: {otherwise}"))
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _quietly(telling: Coroutine[None, None, None]) -> bool:
    """Whether the node has answered."""
    try:
        await telling
    except (ConnectError, HungUpError, TimeoutError):
        return False
    except NodeError:  # it knows of nothing to stop
        return True
    return True
