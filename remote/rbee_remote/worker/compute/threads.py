"""How many threads are worth computing with: fewer than there are cores, while others use the same processors.

llama.cpp's threads meet about a thousand times a token, so the slowest sets the pace. Two threads on two processors of
which others use one are much slower than one thread: beside two busy programs 1.6 tokens/s (14 where they give up their
processor quickly) against the 35 of a single one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

#: Seconds over which the use of the processors is measured: the kernel counts it in hundredths.
WINDOW_S = 0.25

#: Threads are taken away where less than this much of a processor is left for the last one, and added where at least
#: that much is free beside them: apart, so that they do not come and go.
_TOO_LITTLE = 0.5
_ENOUGH = 0.75


@dataclass(frozen=True, slots=True)
class Use:
    """at: seconds on the monotonic clock. busy: processor seconds of everybody since some moment; own: of this
    process."""

    at: float
    busy: float
    own: float


class ThreadBudget:
    """most: threads when nobody else is there. processors: that this process may use. read: how they are used now."""

    def __init__(self, most: int, processors: int, read: Callable[[], Use]) -> None:
        self.most = most
        self._processors = processors
        self._read = read
        self._before: Use | None = None
        self.threads = most

    @classmethod
    def of_this_machine(cls, most: int) -> ThreadBudget:
        allowed = _allowed()
        return cls(most, len(allowed), lambda: _use(allowed))

    def look(self, now: float) -> int:
        """The number of threads for the next step. now: seconds on the monotonic clock."""
        if self._before is not None and now - self._before.at < WINDOW_S:
            return self.threads
        try:
            before, self._before = self._before, self._read()
        except (OSError, psutil.Error):  # some systems keep from their programs what the others do
            return self.threads
        if before is not None:
            self.threads = self._fitting(before, self._before)
        return self.threads

    def pause(self) -> None:
        """Nothing is computed for a while: what others do meanwhile says nothing of the time after."""
        self._before = None
        self.threads = self.most

    def _fitting(self, before: Use, after: Use) -> int:
        others = max(0.0, (after.busy - before.busy) - (after.own - before.own)) / (after.at - before.at)
        free = self._processors - others
        if free < self.threads - _TOO_LITTLE:
            return max(1, int(free + _TOO_LITTLE))
        if free >= self.threads + _ENOUGH:
            return min(self.most, int(free + 1 - _ENOUGH))
        return self.threads


def _allowed() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _use(processors: list[int]) -> Use:
    times = psutil.cpu_times(percpu=True)
    chosen = [times[number] for number in processors if number < len(times)]
    busy = sum(sum(each[:8]) - each.idle - getattr(each, "iowait", 0.0) for each in chosen)  # guests count as user
    own = psutil.Process().cpu_times()
    return Use(time.monotonic(), busy, own.user + own.system)
