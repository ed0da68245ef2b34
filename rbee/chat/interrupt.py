"""Ctrl-C while an answer comes: it ends that, and not the chat."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """Ctrl-C was pressed; what was going on has ended."""


async def until_interrupted(work: Coroutine[Any, Any, T]) -> T:
    """`work`, which SIGINT cancels. Raises Interrupted then; a cancel of the caller is one of both."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    was_pressed = False

    def press() -> None:
        nonlocal was_pressed
        was_pressed = True
        task.cancel()

    before = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, press)
    try:
        return await task
    except asyncio.CancelledError as error:
        here = asyncio.current_task()
        if was_pressed and not (here and here.cancelling()):
            raise Interrupted from error
        raise
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
