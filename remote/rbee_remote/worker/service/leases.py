"""How long a worker is kept, and for whom: pure.

Rules
- Each keeper has a lease of its own. What one asks for neither ends nor shortens another's.
- A lease holds while a request of its keeper is open, and then for the keeper's keep-alive: the one that the last of
  its requests gave, else the one it gave before, else the worker's.
- A keeper that has announced itself and not come yet has FIRST_REQUEST_S at least: a keep-alive of 0 means "end after
  the answer", not before it.
- Nobody's time begins before the model is loaded.
- Time is the monotonic clock's: the machine's date may change as it likes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from rbee_remote.protocol import Lease

#: Seconds that a worker waits at least for the first request of a keeper that it was started for.
FIRST_REQUEST_S = 10.0

#: Keepers whose lease is over that are remembered for their keep-alive, and leases that are told of.
REMEMBERED = 64
MOST_TOLD = 128


@dataclass(slots=True)
class _Lease:
    """open: requests. until: the clock's time at which it is over, once none is open; inf for never."""

    keep_alive_s: float
    until: float
    open: int = 0


class Leases:
    """keep_alive_s: of keepers that give none; negative for never. changes: grows with each change."""

    def __init__(self, keep_alive_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._keep_alive_s = keep_alive_s
        self._clock = clock
        self._leases: dict[str, _Lease] = {}
        self._loaded = False
        self.changes = 0

    def loaded(self) -> None:
        """From now on time counts."""
        self._loaded = True
        for lease in self._leases.values():
            lease.until = self._after(max(lease.keep_alive_s, FIRST_REQUEST_S) if lease.keep_alive_s >= 0 else -1.0)
        self.changes += 1

    def grant(self, keeper: str, keep_alive_s: float) -> None:
        """A keeper is about to come. It keeps what it has, if that is more."""
        lease = self._lease(keeper)
        lease.keep_alive_s = keep_alive_s
        wait = max(keep_alive_s, FIRST_REQUEST_S) if keep_alive_s >= 0 else -1.0
        lease.until = max(lease.until, self._after(wait))

    def begin(self, keeper: str, keep_alive_s: float | None = None) -> None:
        """A request of the keeper is open, until `end`."""
        lease = self._lease(keeper)
        lease.open += 1
        if keep_alive_s is not None:
            lease.keep_alive_s = keep_alive_s

    def end(self, keeper: str) -> None:
        lease = self._lease(keeper)
        lease.open -= 1
        if not lease.open:
            lease.until = self._after(lease.keep_alive_s)

    def left_s(self, *, without: str | None = None) -> float:
        """Seconds until all leases but that of `without` are over: 0 when they are, inf while a request is open or
        where one has no end."""
        now = self._clock()
        return max((self._left(lease, now) for name, lease in self._leases.items() if name != without), default=0.0)

    def keep_alive_s(self) -> float:
        """The longest keep-alive of those who have a lease, of the last ones when all are over; negative for never."""
        now = self._clock()
        held = [lease for lease in self._leases.values() if self._left(lease, now) > 0] or [*self._leases.values()]
        longest = max((math.inf if lease.keep_alive_s < 0 else lease.keep_alive_s for lease in held), default=0.0)
        return -1.0 if math.isinf(longest) else longest

    def told(self) -> tuple[Lease, ...]:
        """Those that are not over, the longest first, MOST_TOLD at most."""
        now = self._clock()
        held = [(left, name) for name, lease in self._leases.items() if (left := self._left(lease, now)) > 0]
        held.sort(key=lambda item: (-item[0], item[1]))
        return tuple(Lease(name, None if math.isinf(left) else left) for left, name in held[:MOST_TOLD])

    def _left(self, lease: _Lease, now: float) -> float:
        return math.inf if lease.open or not self._loaded else max(0.0, lease.until - now)

    def _after(self, seconds: float) -> float:
        return math.inf if seconds < 0 else self._clock() + seconds

    def _lease(self, keeper: str) -> _Lease:
        """Every change comes through here."""
        self.changes += 1
        if keeper not in self._leases:
            self._forget()
            self._leases[keeper] = _Lease(self._keep_alive_s, until=-math.inf)
        return self._leases[keeper]

    def _forget(self) -> None:
        """Drop leases that are over, those that were first, where there are many."""
        now = self._clock()
        over = [name for name, lease in self._leases.items() if self._left(lease, now) <= 0]
        for name in over[: max(0, len(over) - REMEMBERED + 1)]:
            del self._leases[name]
