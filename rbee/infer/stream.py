"""The events of one answer, over as many connections as that takes.

Rules
- The worker numbers the events; they leave here in that order, each once, whatever happens to connections.
- As long as nothing was heard the request itself is sent again, with the same id: the worker computes it once. After
  that, what follows the last event is asked for.
- What is tried again is the way to the worker. A worker that is gone, or says no, has answered.
- Silence is the connection's fault or the worker's: where the hive answers over the same connection it is the worker's,
  and the hive says whether there is anything left to wait for.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import Emit, Notice
from rbee.base.retries import (
    ANSWER_SILENCE_S,
    OUTAGE_LONGEST_PAUSE_S,
    OUTAGE_PAUSE_S,
    OUTAGE_REOPEN_S,
    OUTAGE_S,
    doubled,
)
from rbee.infer.validation import EventCheck
from rbee.infer.worker_status import HiveReport
from rbee.node.answers import Generated, Numbered
from rbee.node.hive_client import WorkerClient
from rbee.node.socket_http import HungUpError, SilenceError
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import Done, ErrorCode, GenerateRequest

#: Asks the hive what became of the worker.
Explain = Callable[[], Awaitable[HiveReport]]


class SilentWorkerError(NodeError):
    """WORKER_CRASHED, for all that can be known: it says nothing, and its hive knows of nothing wrong with it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, of which `rbee.base.retries` says what each is for."""

    silence_s: float = ANSWER_SILENCE_S
    outage_s: float = OUTAGE_S
    attempt_s: float = OUTAGE_REOPEN_S
    pause_s: float = OUTAGE_PAUSE_S
    longest_pause_s: float = OUTAGE_LONGEST_PAUSE_S


async def answer_events(
    worker: WorkerClient,
    request: GenerateRequest,
    *,
    connection: ReconnectingConnection,
    explain: Explain,
    deadline: Deadline,
    emit: Emit,
    patience: Patience,
) -> AsyncGenerator[Generated, None]:
    """The events of an answer up to its `Done`. `connection` is what `worker` speaks over.

    deadline: told to the worker each time the request is sent. Raises after `patience.outage_s` in vain ConnectError
    where the node could not be reached, SilentWorkerError where only the worker is silent; and at once:
    RefusedError and ConfigError by the node, NodeError by the worker, WORKER_GONE where it is not there any more.
    """
    heard = 0
    check = EventCheck(request.max_tokens)
    outage = _Outage(connection, emit, patience)
    while True:
        try:
            await outage.recover()
            async with _events(worker, request, heard, deadline, patience) as events:
                outage.opened()
                async for number, event in events:
                    check.take(number, event)
                    heard = number
                    outage.heard()
                    yield event
                    if isinstance(event, Done):
                        return
            raise HungUpError("the answer")
        except SilenceError as error:
            report = await explain()
            if report.over:
                raise NodeError(
                    ErrorCode.WORKER_GONE, f"the worker on {connection.node} does not answer any more"
                ) from error
            outage.failed(StreamEvent.SILENT if report.reached else StreamEvent.UNREACHABLE, error)
        except HungUpError as error:
            outage.failed(StreamEvent.HUNG_UP, error)
        except ConnectError as error:
            outage.failed(StreamEvent.UNREACHABLE, error)
        except NodeError as error:
            if error.code is ErrorCode.REQUEST_GONE:
                raise _forgotten(connection.node) from error
            raise


def _events(
    worker: WorkerClient, request: GenerateRequest, heard: int, deadline: Deadline, patience: Patience
) -> AbstractAsyncContextManager[AsyncIterator[Numbered]]:
    if heard:
        return worker.resume(request.request_id, after=heard, silence_s=patience.silence_s)
    return worker.generate(replace(request, timeout_s=deadline.left()), silence_s=patience.silence_s)


class StreamState(enum.Enum):
    """CONNECTED: nothing is wrong. SUSPECT: the worker hung up or is silent, and the connection may be good: ask again
    over it. RECONNECTING: open another connection, then ask. LOST: given up.
    """

    CONNECTED = "Connected"
    SUSPECT = "Suspect"
    RECONNECTING = "Reconnecting"
    LOST = "Lost"


class StreamEvent(enum.Enum):
    """HEARD: an event of the answer came. HUNG_UP: the stream ended before the answer did. SILENT: the worker says
    nothing, and the hive answers over the same connection. UNREACHABLE: the connection broke, is silent, or cannot be
    opened. EXPIRED: one of these three when the outage has lasted too long.
    """

    HEARD = "heard"
    HUNG_UP = "hung up"
    SILENT = "silent"
    UNREACHABLE = "unreachable"
    EXPIRED = "expired"


_S, _E = StreamState, StreamEvent
#: A second hang-up is the connection's: a worker that died alone would have been found gone when it was asked again.
TRANSITIONS: dict[StreamState, dict[StreamEvent, StreamState]] = {
    _S.CONNECTED: {
        _E.HEARD: _S.CONNECTED,
        _E.HUNG_UP: _S.SUSPECT,
        _E.SILENT: _S.SUSPECT,
        _E.UNREACHABLE: _S.RECONNECTING,
    },
    _S.SUSPECT: {
        _E.HEARD: _S.CONNECTED,
        _E.HUNG_UP: _S.RECONNECTING,
        _E.SILENT: _S.SUSPECT,
        _E.UNREACHABLE: _S.RECONNECTING,
        _E.EXPIRED: _S.LOST,
    },
    _S.RECONNECTING: {
        _E.HEARD: _S.CONNECTED,
        _E.HUNG_UP: _S.RECONNECTING,
        _E.SILENT: _S.SUSPECT,
        _E.UNREACHABLE: _S.RECONNECTING,
        _E.EXPIRED: _S.LOST,
    },
    _S.LOST: {},
}


class _Outage:
    """Where the stream is in `TRANSITIONS`, since when, and the tries to get back to the worker."""

    def __init__(self, connection: ReconnectingConnection, emit: Emit, patience: Patience) -> None:
        self._connection = connection
        self._emit = emit
        self._patience = patience
        self._state = StreamState.CONNECTED
        self._began = 0.0
        self._opened_at: float | None = None
        self._tries = 0
        self._told = ""

    def heard(self) -> None:
        """What goes wrong next is another outage."""
        self._on(StreamEvent.HEARD)
        self._tries = 0
        self._told = ""

    def failed(self, event: StreamEvent, error: ConnectError | HungUpError) -> None:
        """event: HUNG_UP, SILENT or UNREACHABLE. Raises ConnectError or NodeError after an outage of `outage_s`."""
        now, patience, node = time.monotonic(), self._patience, self._connection.node
        # Twice the silence that is suffered cannot have passed without a byte.
        if self._opened_at is not None and now - self._opened_at > 2 * patience.silence_s:
            self.heard()
        self._opened_at = None
        if self._state is StreamState.CONNECTED:
            self._began = now - (patience.silence_s if event is StreamEvent.SILENT else 0.0)
        elif now - self._began >= patience.outage_s:
            self._on(StreamEvent.EXPIRED)
            raise _lost(node, patience.outage_s, error, event) from error
        self._on(event)
        if event is StreamEvent.SILENT:
            self._tell(f"the worker on {node} is silent, waiting for it")
        elif event is StreamEvent.UNREACHABLE:
            self._tell(f"lost the connection to {node}, reconnecting")

    async def recover(self) -> None:
        """Wait before a further try; reopen a lost connection. Raises as `ReconnectingConnection.reopen`."""
        if self._state is StreamState.CONNECTED:
            return
        patience, self._tries = self._patience, self._tries + 1
        if self._tries > 1:
            await asyncio.sleep(doubled(patience.pause_s, patience.longest_pause_s, self._tries - 1))
        if self._state is not StreamState.RECONNECTING:
            return
        left = patience.outage_s - (time.monotonic() - self._began)
        try:
            async with asyncio.timeout(min(patience.attempt_s, left)):
                await self._connection.reopen()
        except TimeoutError as error:
            raise ConnectError(
                ErrorCode.CONNECTION_TIMEOUT,
                f"{self._connection.node} cannot be reached",
                details={"reason": "no answer"},
            ) from error

    def opened(self) -> None:
        """The worker takes the request; no event of it came yet."""
        self._opened_at = time.monotonic()
        if self._told and self._state is StreamState.RECONNECTING:
            self._emit(Notice(f"reconnected to {self._connection.node}"))
            self._told = ""

    def _on(self, event: StreamEvent) -> None:
        self._state = TRANSITIONS[self._state][event]

    def _tell(self, what: str) -> None:
        """Once, however often it is tried."""
        if what != self._told:
            self._told = what
            self._emit(Notice(what))


def _lost(node: str, outage_s: float, error: RbeeError, event: StreamEvent) -> RbeeError:
    if event is StreamEvent.SILENT:
        return SilentWorkerError(
            ErrorCode.WORKER_CRASHED,
            f"the worker on {node} was silent for {outage_s:g} s, although the node answers",
            hint="`rbee workers stop ID` ends it; `rbee logs NODE` says more",
        )
    if isinstance(error, (HungUpError, SilenceError)):
        return error  # the node is there, and what is wrong is its worker
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        f"could not reconnect to {node} within {outage_s:g} s",
        hint="what runs on the node keeps running; try again",
        details={"reason": error.details.get("reason") or error.message},
    )


def _forgotten(node: str) -> ConnectError:
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        f"the connection to {node} was lost for so long that the worker has forgotten the answer",
        hint="try again",
    )
