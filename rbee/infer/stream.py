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
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import Emit, Notice
from rbee.infer.validation import Plausible
from rbee.infer.worker_status import HiveReport
from rbee.node.hive_client import Generated, Numbered, WorkerClient
from rbee.node.socket_http import HungUpError, SilenceError
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import Done, ErrorCode, GenerateRequest

#: Asks the hive what became of the worker.
Explain = Callable[[], Awaitable[HiveReport]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. silence_s: without a byte, after which a connection counts as dead; a worker that has nothing to say
    sends a comment every three. outage_s: without the worker, until the answer is given up. attempt_s: for opening one
    connection. pause_s: before the second try, doubled with each further one up to `longest_pause_s`.
    """

    silence_s: float = 10.0
    outage_s: float = 30.0
    attempt_s: float = 30.0
    pause_s: float = 0.1
    longest_pause_s: float = 2.0


async def unbroken(
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
    where the node could not be reached, NodeError WORKER_CRASHED where only the worker is silent; and at once:
    RefusedError and ConfigError by the node, NodeError by the worker, WORKER_GONE where it is not there any more.
    """
    heard = 0
    plausible = Plausible(request.max_tokens)
    outage = _Outage(connection, emit, patience)
    while True:
        try:
            await outage.mend()
            async with _events(worker, request, heard, deadline, patience) as events:
                outage.connected()
                async for number, event in events:
                    plausible.check(number, event)
                    heard = number
                    outage.over()
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
            outage.add(error, node_answers=report.reached)
        except (ConnectError, HungUpError) as error:
            outage.add(error)
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


class _Outage:
    """The time without the worker, and the tries to get back to it."""

    def __init__(self, connection: ReconnectingConnection, emit: Emit, patience: Patience) -> None:
        self._connection = connection
        self._emit = emit
        self._patience = patience
        self._began: float | None = None
        self._connected_at: float | None = None
        self._connection_is_good = False
        self._tries = 0
        self._told = ""

    def add(self, error: ConnectError | HungUpError, *, node_answers: bool = False) -> None:
        """The way to the worker broke, or could not be opened, or the worker is silent on a node that answers.

        Raises ConnectError or NodeError when that has lasted too long.
        """
        now = time.monotonic()
        # Twice the silence that is suffered cannot have passed without a byte.
        if self._connected_at is not None and now - self._connected_at > 2 * self._patience.silence_s:
            self.over()
        self._connected_at = None
        self._connection_is_good = node_answers
        if self._began is None:
            self._began = now - (self._patience.silence_s if node_answers else 0.0)
        elif now - self._began >= self._patience.outage_s:
            raise _lost(self._connection.node, self._patience.outage_s, error, node_answers) from error
        if node_answers:
            self._tell(f"the worker on {self._connection.node} is silent, waiting for it")
        elif isinstance(error, ConnectError):
            self._tell(f"lost the connection to {self._connection.node}, reconnecting")
        elif not self._tries:  # perhaps the worker alone has died: whoever asks on the same connection learns at once
            self._connection_is_good = True

    async def mend(self) -> None:
        """Have a connection again, if it was lost. Raises as `ReconnectingConnection.reopen`."""
        if self._began is None:
            return
        patience, self._tries = self._patience, self._tries + 1
        if self._tries > 1:
            await asyncio.sleep(min(patience.pause_s * 2 ** (self._tries - 2), patience.longest_pause_s))
        if self._connection_is_good:
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

    def connected(self) -> None:
        """The worker is spoken to again."""
        self._connected_at = time.monotonic()
        if self._told and not self._connection_is_good:
            self._emit(Notice(f"reconnected to {self._connection.node}"))
            self._told = ""

    def over(self) -> None:
        """The worker was heard: what comes next is another outage."""
        self._began = None
        self._tries = 0
        self._told = ""

    def _tell(self, what: str) -> None:
        """Once, however often it is tried."""
        if what != self._told:
            self._told = what
            self._emit(Notice(what))


def _lost(node: str, outage_s: float, error: RbeeError, node_answers: bool) -> RbeeError:
    if node_answers:
        return NodeError(
            ErrorCode.WORKER_CRASHED,
            f"the worker on {node} was silent for {outage_s:g} s, although the node answers",
            hint="`rbee workers stop ID` ends it; `rbee logs NODE` says more",
        )
    if isinstance(error, (HungUpError, SilenceError)):
        return error  # the node is there, and what is wrong is its worker
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        f"the connection to {node} was lost, and not to be had again within {outage_s:g} s",
        hint="what runs on the node goes on; try again",
        details={"reason": error.details.get("reason") or error.message},
    )


def _forgotten(node: str) -> ConnectError:
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        f"the connection to {node} was lost for so long that the worker has forgotten the answer",
        hint="try again",
    )
