"""Waiting for something to change."""

from __future__ import annotations

import asyncio


class Changes:
    """Wakes everybody who waits at the moment of a `notify`. Made for one wait a token: no task, no cancel scope.

    count: of the changes so far. whole: changes with it, None for nothing. Belongs to the event loop's thread.
    """

    def __init__(self, whole: Changes | None = None) -> None:
        self.count = 0
        self.whole = whole
        self._waiting: list[asyncio.Future[bool]] = []

    def notify(self) -> None:
        self.count += 1
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            _settle(future, True)
        if self.whole is not None:
            self.whole.notify()

    async def wait(self, timeout_s: float | None = None, *, seen: int | None = None) -> bool:
        """False when nothing has changed within `timeout_s`. seen: the count at which the caller looked last; where
        there is more already, it does not wait."""
        if seen is not None and seen != self.count:
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(future)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _settle, future, False)
        try:
            return await future
        finally:
            if timer:
                timer.cancel()
            if future in self._waiting:
                self._waiting.remove(future)


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)
