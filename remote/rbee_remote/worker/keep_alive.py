"""The clock of an idle worker: it starts when nothing runs, and the worker ends when it has run down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: A worker that has just loaded waits at least this long for the request that it was started for, even where its
#: keep-alive is shorter: 0 means "end after the answer", not before it.
FIRST_REQUEST_S = 10.0

#: Seconds until the clock, run down, asks again whether there is a reason to stay.
STAY_S = 1.0


class KeepAlive:
    """seconds: of idleness until `over` is called; negative for never. A change counts from the next idle time on.

    served: whether anybody has come yet. stay: asked before `over`; while it says True, the worker is kept.
    """

    def __init__(self, seconds: float, *, stay: Callable[[], bool], over: Callable[[], None]) -> None:
        self.seconds = seconds
        self.served = False
        self._stay = stay
        self._over = over
        self._holds = 0
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle_s(self) -> float | None:
        """Seconds since it became idle, None while something runs."""
        return None if self._since is None else time.monotonic() - self._since

    @contextmanager
    def held(self) -> Iterator[None]:
        """While somebody is being served, also between the pieces of it: the worker is kept."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def set_idle(self, idle: bool) -> None:
        if idle and self._since is None:
            self._since = time.monotonic()
            if self.seconds >= 0:
                self._wait(self.seconds if self.served else max(self.seconds, FIRST_REQUEST_S))
        elif not idle:
            self._since = None
            if self._timer:
                self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._run_down)

    def _run_down(self) -> None:
        if self._holds or self._stay():
            self._wait(STAY_S)
        else:
            self._over()
