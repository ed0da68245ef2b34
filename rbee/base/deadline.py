"""One point in time by which everything has to be done: absolute in this process, what is left of it on the wire."""

from __future__ import annotations

import time
from dataclasses import dataclass

#: What is sent as left is never less: a deadline of 0 s is no request.
_LEAST_S = 0.001


@dataclass(frozen=True, slots=True)
class Deadline:
    """at: on the monotonic clock, None for no deadline."""

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        return cls(None if seconds is None else time.monotonic() + seconds)

    def left(self) -> float | None:
        """Seconds, more than 0 even when it has passed; None for no deadline."""
        return None if self.at is None else max(_LEAST_S, self.at - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at
