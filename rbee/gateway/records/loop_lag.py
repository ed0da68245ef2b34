"""How late the event loop is, which is what each request here waits beyond its own work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

#: Seconds between two looks: ten a second cost a few hundred microseconds of processor time.
EVERY_S = 0.1


@asynccontextmanager
async def watched(observe: Callable[[float], None]) -> AsyncIterator[None]:
    """While the context is entered, `observe` is given the seconds that a timer came late, EVERY_S apart."""
    task = asyncio.create_task(_watch(observe), name="watch the loop's lag")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(observe: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + EVERY_S
        await asyncio.sleep(EVERY_S)
        observe(max(0.0, loop.time() - due))
