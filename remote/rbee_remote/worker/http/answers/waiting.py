"""Waiting for several things at once, and for a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


async def all_or_none(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results. Where one fails, or this is canceled, all of them are over when it ends."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def when_gone(receive: Receive, cancel: Callable[[], object]) -> None:
    """Call `cancel` once the client has closed its connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()
