"""Requests that wait, in the order in which they are served. Pure.

Priority comes before arrival, and each step of it is worth PRIORITY_S seconds of waiting: who came that much earlier
goes first even so, and nobody waits for ever. Requests that want the same stand in one line, since what the first of a
line waits for, all behind it wait for.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rbee.gateway.base.views import Wanted
from rbee.gateway.routing.situation import Wait

#: Seconds of waiting that one step of priority makes up for: longer than most answers take, and no client's patience.
PRIORITY_S = 30.0
#: No key has more, whatever it says.
MOST_PRIORITY = 10


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits. entered_at, deadline: on the loop's clock. place: what it is sorted by, unique."""

    wanted: Wanted
    entered_at: float
    number: int
    place: tuple[float, int] = field(init=False)

    def __post_init__(self) -> None:
        priority = max(-MOST_PRIORITY, min(self.wanted.priority, MOST_PRIORITY))
        self.place = (self.entered_at - PRIORITY_S * priority, self.number)


@dataclass(slots=True, eq=False)
class Line:
    """Those that want the same, in order. wait: what the first waits for, as was decided last."""

    model: str
    waiters: list[Waiter] = field(default_factory=list)
    wait: Wait = field(default_factory=Wait)


class Queue:
    """All that wait. The order among lines is that of their first."""

    def __init__(self) -> None:
        self._lines: dict[Any, Line] = {}

    def __len__(self) -> int:
        return sum(len(line.waiters) for line in self._lines.values())

    def add(self, waiter: Waiter) -> bool:
        """Whether it is the first of its line."""
        line = self._lines.setdefault(_kind(waiter.wanted), Line(waiter.wanted.targets[0].model))
        bisect.insort(line.waiters, waiter, key=_place)
        return line.waiters[0] is waiter

    def remove(self, waiter: Waiter) -> None:
        """Idempotent."""
        kind = _kind(waiter.wanted)
        line = self._lines.get(kind)
        if line is None:
            return
        at = bisect.bisect_left(line.waiters, waiter.place, key=_place)
        if at < len(line.waiters) and line.waiters[at] is waiter:
            del line.waiters[at]
        if not line.waiters:
            del self._lines[kind]

    def waiting_for(self, model: str) -> int:
        return sum(len(line.waiters) for line in self._lines.values() if line.model == model)

    def ahead_of(self, waiter: Waiter) -> int:
        """How many of its model are served before."""
        model = waiter.wanted.targets[0].model
        lines = (line for line in self._lines.values() if line.model == model)
        return sum(bisect.bisect_left(line.waiters, waiter.place, key=_place) for line in lines)

    def line_of(self, waiter: Waiter) -> Line | None:
        return self._lines.get(_kind(waiter.wanted))

    def lines(self) -> list[Line]:
        """By their first."""
        return sorted(self._lines.values(), key=lambda line: line.waiters[0].place)

    def __iter__(self) -> Iterator[Waiter]:
        return itertools.chain.from_iterable(list(line.waiters) for line in list(self._lines.values()))


def _place(waiter: Waiter) -> tuple[float, int]:
    return waiter.place


def _kind(wanted: Wanted) -> Any:
    """The same for requests of which one can be served where the other can."""
    return wanted.targets, wanted.sha256, wanted.avoid
