"""What becomes of a line after a try: it is done, asked again, or failed; and when the run is to end. Pure.

Rules
- What a worker refuses is the line's own fault (400, 404, 413, 422 …): it has failed.
- What is the nodes' fault never makes a line fail while no other line gets an answer either: it waits. So a fleet that
  is away for an hour costs an hour, and no line.
- A line that has been tried `retries` times more, while others got answers, has failed: a worker may die of it.
- Where nobody answers and what is wrong does not pass by itself, the run ends soon; and after `give_up_s` in any case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rbee.base.retries import BATCH_FATAL_S, BATCH_LONGEST_PAUSE_S, BATCH_PAUSE_S, doubled

#: Seconds between two lines that say that nobody answers.
TELL_S = 30.0
#: Statuses of requests that may do better at another time.
_LATER = frozenset({408, 409, 425, 429, 499})
#: Nobody was there to try: no fault of the line.
_AWAY = frozenset({"CONNECTION_LOST", "CONNECTION_TIMEOUT", "ALL_SLOTS_BUSY", "NODE_BUSY", "RATE_LIMITED", "IN_USE"})
#: What does not pass by itself, where all nodes say so.
_FATAL = frozenset(
    {"MODEL_NOT_FOUND", "MODEL_INVALID", "RAM_EXHAUSTED", "VRAM_EXHAUSTED", "BACKEND_UNAVAILABLE", "DOWNLOAD_FAILED"}
    | {"DISK_FULL", "AUTH_FAILED", "HOST_KEY_UNKNOWN", "HOST_KEY_MISMATCH", "NODE_UNSUPPORTED", "BOOTSTRAP_FAILED"}
)


def is_answer(status: int) -> bool:
    return 200 <= status < 300


def is_refused(status: int) -> bool:
    """Whether asking again would give the same."""
    return 400 <= status < 500 and status not in _LATER


@dataclass(slots=True)
class Attempts:
    """Of one line. tries: that count. since: answers that others had got when it was tried first."""

    since: int
    tries: int = 0
    in_a_row: int = 0

    def pause_s(self) -> float:
        """Before the next try."""
        return doubled(BATCH_PAUSE_S, BATCH_LONGEST_PAUSE_S, max(1, self.in_a_row))


@dataclass(slots=True)
class Health:
    """Of the run. retries: more tries of a line. give_up_s: without any answer, after which the run ends; infinite for
    never. answers: got so far, refusals included, which show that somebody is there. why, code: of the last miss."""

    retries: int
    give_up_s: float = math.inf
    answers: int = 0
    _bad_since: float | None = field(default=None, init=False)
    _fatal_since: float | None = field(default=None, init=False)
    why: str = field(default="", init=False)
    code: str = field(default="", init=False)

    @property
    def is_bad(self) -> bool:
        return self._bad_since is not None

    def got(self) -> None:
        self.answers += 1
        self._bad_since = self._fatal_since = None
        self.why = ""

    def missed(self, attempts: Attempts, code: str, why: str, now: float) -> bool:
        """A try got no answer. Whether its line has failed; else it is tried again after `attempts.pause_s()`."""
        attempts.in_a_row += 1
        attempts.tries += code not in _AWAY
        self._bad_since = now if self._bad_since is None else self._bad_since
        if code not in _FATAL:
            self._fatal_since = None
        elif self._fatal_since is None:
            self._fatal_since = now
        self.why, self.code = why, code
        others_did = self.answers > attempts.since
        return attempts.tries > self.retries and others_did

    def is_over(self, now: float) -> bool:
        """Whether the run is to end, since nobody answers."""
        if self._fatal_since is not None and now - self._fatal_since >= BATCH_FATAL_S:
            return True
        return self._bad_since is not None and now - self._bad_since >= self.give_up_s
