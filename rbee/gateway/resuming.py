"""Where a request goes on when a worker, or the way to it, has failed it. Pure.

Rules
- Where the client has nothing of the answer, it begins again. A worker that failed is not asked again, but one whose
  connection alone may have broken is asked once more, first, since it has most of the work done.
- Where the client has some of it, only what continues it to the letter will do: a worker that tells where it stands,
  and another one with the same file.
- A request that no worker survives is given up before it has gone through them all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.gateway.errors import Refusal
from rbee.gateway.views import Wanted, WorkerView
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import ErrorCode

#: Failures without a further line in between, and in all.
MOST_IN_A_ROW = 4
MOST = 8


class Kind(enum.Enum):
    """BROKE: the connection, perhaps alone. GONE: the worker. REFUSED: the worker lives, and does not take it."""

    BROKE = "broke"
    GONE = "gone"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Failure:
    """refusal, said: the worker's own answer, and its body where the client can have it as it is."""

    kind: Kind
    error: RbeeError
    refusal: Refusal | None = None
    said: bytes = b""


class GaveUpError(Exception):
    """No other worker can serve the request, or may be tried. failure: the last one's."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


def failure_of(error: ConnectError | NodeError) -> Failure:
    is_broken = isinstance(error, (HungUpError, ConnectError)) and not isinstance(error, SilenceError)
    return Failure(Kind.BROKE if is_broken else Kind.GONE, error)


def gone(why: str) -> Failure:
    return Failure(Kind.GONE, NodeError(ErrorCode.WORKER_GONE, why))


class Course:
    """The failures of one request. lines: how many the client has, at each."""

    def __init__(self) -> None:
        self._failures = 0
        self._in_a_row = 0
        self._lines = -1
        self._stayed_at = -1

    def note(self, lines: int) -> None:
        """A failure."""
        self._failures += 1
        self._in_a_row = self._in_a_row + 1 if lines == self._lines else 1
        self._lines = lines

    @property
    def is_over(self) -> bool:
        return self._failures >= MOST or self._in_a_row >= MOST_IN_A_ROW

    def stays(self, failure: Failure, *, is_there: bool) -> bool:
        """Whether the same worker is asked once more. is_there: it still runs, as far as is
        known, and can be told what the client has."""
        if self.is_over or failure.kind is not Kind.BROKE or not is_there or self._stayed_at == self._lines:
            return False
        self._stayed_at = self._lines
        return True

    def elsewhere(self, wanted: Wanted, worker: WorkerView, failure: Failure, *, sent: bool, resumes: bool) -> Wanted:
        """What another worker has to be. sent: the client has some of the answer; resumes: it can be told how much.

        Raises GaveUpError.
        """
        if self.is_over or (sent and not (resumes and worker.sha256)):
            raise GaveUpError(failure)
        return replace(wanted, avoid=wanted.avoid | {worker.key}, sha256=worker.sha256 if sent else "")


def ending(failure: Failure, why: RbeeError | None, *, sent: bool) -> Failure:
    """The failure as the client is told it. why: no other worker could be had."""
    if not sent:
        return failure
    other = f": {why.message}" if why is not None else ""
    told = f"the answer is not complete: {failure.error.message}, and no other worker could go on with it{other}"
    return replace(failure, error=NodeError(ErrorCode.WORKER_GONE, told), refusal=None, said=b"")
