"""Long work: beside the event loop, or two things at once; it ends when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

#: Raises StoppedError where the result is no longer wanted. Work calls it often: once for each MiB, say.
Stop = Callable[[], None]


class StoppedError(Exception):
    """Nobody hears of it: whoever waited is gone."""


def never() -> None:
    """The `Stop` of work that is not stopped."""


async def in_thread(work: Callable[[Stop], Result]) -> Result:
    """What `work` returns or raises, from a thread of its own.

    A cancellation (Ctrl-C) stops it, and goes on when it has ended: until then it may use what the caller cleans up,
    and what the caller's lock protects.
    """
    unwanted = threading.Event()

    def stop() -> None:
        if unwanted.is_set():
            raise StoppedError

    working = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        unwanted.set()
        await asyncio.wait([working])
        raise


async def alongside(main: Coroutine[Any, Any, Result], other: Coroutine[Any, Any, None]) -> Result:
    """What `main` returns, once `other` is done too. The first error of one ends the other, and is raised alone."""
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(other)
            wanted = tasks.create_task(main)
    except BaseExceptionGroup as group:
        first = group.exceptions[0]
        raise first from first.__cause__
    return wanted.result()
