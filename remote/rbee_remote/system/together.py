"""Several calls that are one: all of their results, or none."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

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
