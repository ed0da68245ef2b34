"""How late the event loop is, which is what each request here waits beyond its own work."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

#: Seconds between two looks: ten a second cost a few hundred microseconds of processor time.
EVERY_S = 0.1


@asynccontextmanager
async def watched(observe: Callable[[float], None]) -> AsyncIterator[None]:
    """While the context is entered, `observe` is given the seconds that a timer came late, EVERY_S apart."""
    async with _beside(_watch(observe), "watch the loop's lag"):
        yield


@asynccontextmanager
async def spared(started: Coroutine[Any, Any, object]) -> AsyncIterator[None]:
    """While the context is entered, and once `started` returns: what is there then stays, so Python's collector does
    not look through it any more. Each time that it did would hold all requests up, for 40 ms and more with the 70,000
    objects of a gateway's modules."""
    async with _beside(_freeze(started), "spare the collector"):
        yield


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None], name: str) -> AsyncIterator[None]:
    task = asyncio.create_task(work, name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _freeze(started: Coroutine[Any, Any, object]) -> None:
    await started
    gc.freeze()


async def _watch(observe: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        observe(max(0.0, loop.time() - due))
