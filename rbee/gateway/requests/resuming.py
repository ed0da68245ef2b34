"""Where a request goes on when a worker, or the way to it, has failed it. Pure, but for the clock.

Rules
- Where the client has nothing of the answer, it begins again. A worker that failed is not asked again, but one whose
  connection alone may have broken is asked again first, since it has most of the work done.
- Where the client has some of it, only what continues it to the letter will do: a worker that tells where it stands,
  and another one with the same file.
- A request that no worker survives is given up before it has gone through them all.
- What counts as getting on is a token that was told, whether the client has a line of it or not. A connection that is
  lost is no worker's fault, nor the request's.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.retries import FAILOVER_IN_A_ROW, FAILOVER_STILL_S, FAILOVER_TRIES
from rbee.gateway.base.views import Wanted, WorkerView
from rbee.gateway.requests.errors import Refusal
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import ErrorCode


class Kind(enum.Enum):
    """BROKE: the connection, perhaps alone. SILENT: it, or the worker. GONE: the worker. REFUSED: the worker lives, and
    does not take it."""

    BROKE = "broke"
    SILENT = "silent"
    GONE = "gone"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Failure:
    """refusal, said: the worker's own answer, and its body where the client can have it as it is."""

    kind: Kind
    error: RbeeError
    refusal: Refusal | None = None
    said: bytes = b""

    @property
    def is_connection(self) -> bool:
        """Whether it says nothing of the worker."""
        return isinstance(self.error, ConnectError) and not isinstance(self.error, SilenceError)


class GaveUpError(Exception):
    """No other worker can serve the request, or may be tried. failure: the last one's."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error.message)
        self.failure = failure


class NoOtherError(GaveUpError):
    """No other worker could be had."""


def failure_of(error: RbeeError) -> Failure:
    if isinstance(error, SilenceError):
        return Failure(Kind.SILENT, error)
    return Failure(Kind.BROKE if isinstance(error, (HungUpError, ConnectError)) else Kind.GONE, error)


def gone(why: str) -> Failure:
    return Failure(Kind.GONE, NodeError(ErrorCode.WORKER_GONE, why))


class Course:
    """The failures of one request. now: seconds on a clock that does not jump."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._told = -1
        self._got_on_at = now()
        self._in_a_row = 0
        self._workers_in_a_row = 0
        self._workers = 0
        self._stays = 0

    def note(self, failure: Failure, told: int) -> None:
        """told: tokens and lines of the answer so far, `Progress.told`."""
        if told > self._told:
            self._told, self._got_on_at = told, self._now()
            self._in_a_row = self._workers_in_a_row = self._stays = 0
        self._in_a_row += 1
        if not failure.is_connection:
            self._workers += 1
            self._workers_in_a_row += 1

    @property
    def is_over(self) -> bool:
        if self._workers >= FAILOVER_TRIES or self._workers_in_a_row >= FAILOVER_IN_A_ROW:
            return True
        return self._in_a_row >= FAILOVER_IN_A_ROW and self._now() - self._got_on_at >= FAILOVER_STILL_S

    def stays(self, failure: Failure) -> bool:
        """Whether the same worker may be asked once more: after each token, at once, and then, where the connection is
        not there yet, when it is."""
        may = self._stays == 0 or (self._stays == 1 and failure.is_connection)
        if self.is_over or failure.kind is not Kind.BROKE or not may:
            return False
        self._stays += 1
        return True

    @property
    def has_stayed(self) -> bool:
        """Whether the last `stays` was not the first after its token."""
        return self._stays > 1

    def elsewhere(self, wanted: Wanted, worker: WorkerView, failure: Failure, *, sent: bool, resumes: bool) -> Wanted:
        """What the next worker has to be: another one, unless only the connection was lost. sent: the client has some
        of the answer; resumes: it can be told how much. Raises GaveUpError.
        """
        if self.is_over or (sent and not (resumes and worker.sha256)):
            raise GaveUpError(failure)
        failed = frozenset() if failure.is_connection else frozenset({worker.key})
        return replace(wanted, avoid=wanted.avoid | failed, sha256=worker.sha256 if sent else "")


def ending(failure: Failure, why: RbeeError | None, *, sent: bool) -> Failure:
    """The failure as the client is told it. why: no other worker could be had."""
    if not sent:
        return failure
    other = f": {why.message}" if why is not None else ""
    told = f"the answer is not complete: {failure.error.message}, and no other worker could go on with it{other}"
    return replace(failure, error=NodeError(ErrorCode.WORKER_GONE, told), refusal=None, said=b"")
