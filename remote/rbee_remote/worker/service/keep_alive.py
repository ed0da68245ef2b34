"""When an idle worker ends: when all its keepers' leases are over, and nothing else is a reason to stay."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rbee_remote.worker.service.leases import Leases

#: Seconds until the clock, run down, asks again whether there is a reason to stay.
STAY_S = 1.0


class KeepAlive:
    """Calls `over` once. stay: asked before; while it says True, the worker is kept. changed: called when a lease is
    another."""

    def __init__(
        self, leases: Leases, *, stay: Callable[[], bool], over: Callable[[], None], changed: Callable[[], None]
    ) -> None:
        self.leases = leases
        self._stay = stay
        self._over = over
        self._changed = changed
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

    @contextmanager
    def leased(self, keeper: str) -> Iterator[None]:
        """While a request of the keeper is open."""
        self.begin(keeper)
        try:
            yield
        finally:
            self.end(keeper)

    def begin(self, keeper: str, keep_alive_s: float | None = None) -> None:
        self.leases.begin(keeper, keep_alive_s)
        self._changed()

    def end(self, keeper: str) -> None:
        self.leases.end(keeper)
        self._arm()
        self._changed()

    def grant(self, keeper: str, keep_alive_s: float) -> None:
        self.leases.grant(keeper, keep_alive_s)
        self._arm()
        self._changed()

    def loaded(self) -> None:
        self.leases.loaded()
        self._arm()
        self._changed()

    def set_idle(self, idle: bool) -> None:
        if idle and self._since is None:
            self._since = time.monotonic()
            self._arm()
        elif not idle:
            self._since = None
            self._disarm()

    def in_use(self, idle_s: float, keeper: str) -> str:
        """Why the worker is not to end now for a keeper that wants it gone once it was idle for `idle_s`: a clause,
        "" where nothing speaks against it."""
        if self._since is None:
            return "a request is open"
        if self._holds:
            return "a client is being served"
        if self._stay():
            return "an answer waits for its client to come back"
        since = time.monotonic() - self._since
        if since < idle_s:
            return f"it has been idle for {since:.0f} s only"
        left = self.leases.left_s(without=keeper)
        if math.isinf(left):
            return "another keeper holds it without end"
        return f"another keeper holds it for {left:.0f} s" if left else ""

    def _arm(self) -> None:
        self._disarm()
        if self._since is not None and not math.isinf(left := self.leases.left_s()):
            self._wait(left)

    def _disarm(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._run_down)

    def _run_down(self) -> None:
        if self.leases.left_s() > 0:
            self._arm()
        elif self._holds or self._stay():
            self._wait(STAY_S)
        else:
            self._over()
