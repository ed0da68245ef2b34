"""The events of one answer, over as many connections as that takes.

Rules
- The worker numbers the events; they leave here in that order, each once, whatever happens to connections.
- As long as nothing was heard the request itself is sent again, with the same id: the worker computes it once. After
  that, what follows the last event is asked for.
- What is tried again is the way to the worker. A worker that is gone, or says no, has answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from rbee.deadline import Deadline
from rbee.errors import ConnectError, NodeError, RbeeError
from rbee.events import Emit, Notice
from rbee.hive_client import Generated, Numbered, WorkerClient
from rbee.link import Link
from rbee.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import Done, ErrorCode, GenerateRequest


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
    worker: WorkerClient, request: GenerateRequest, *, link: Link, deadline: Deadline, emit: Emit, patience: Patience
) -> AsyncGenerator[Generated, None]:
    """The events of an answer up to its `Done`. `link` is what `worker` speaks over.

    deadline: told to the worker each time the request is sent. Raises ConnectError when the worker could not be reached
    for `patience.outage_s`, and at once: RefusedError and ConfigError by the node, NodeError by the worker, WORKER_GONE
    where it is not there any more.
    """
    heard = 0
    outage = _Outage(link, emit, patience)
    while True:
        try:
            await outage.mend()
            async with _events(worker, request, heard, deadline, patience) as events:
                outage.connected()
                async for number, event in events:
                    if number != heard + 1:
                        raise NodeError(ErrorCode.INTERNAL, f"the worker sent event {number} after event {heard}")
                    heard = number
                    outage.over()
                    yield event
                    if isinstance(event, Done):
                        return
            raise HungUpError("the answer")
        except (ConnectError, HungUpError) as error:
            outage.add(error)
        except NodeError as error:
            if error.code is ErrorCode.REQUEST_GONE:
                raise _forgotten(link.node) from error
            raise


def _events(
    worker: WorkerClient, request: GenerateRequest, heard: int, deadline: Deadline, patience: Patience
) -> AbstractAsyncContextManager[AsyncIterator[Numbered]]:
    if heard:
        return worker.resume(request.request_id, after=heard, silence_s=patience.silence_s)
    return worker.generate(replace(request, timeout_s=deadline.left()), silence_s=patience.silence_s)


class _Outage:
    """The time without the worker, and the tries to get back to it."""

    def __init__(self, link: Link, emit: Emit, patience: Patience) -> None:
        self._link = link
        self._emit = emit
        self._patience = patience
        self._began: float | None = None
        self._connected_at: float | None = None
        self._error: RbeeError | None = None
        self._tries = 0
        self._told = False

    def add(self, error: ConnectError | HungUpError) -> None:
        """The way to the worker broke, or could not be opened. Raises ConnectError when that has lasted too long."""
        now = time.monotonic()
        # Twice the silence that is suffered cannot have passed without a byte.
        if self._connected_at is not None and now - self._connected_at > 2 * self._patience.silence_s:
            self.over()
        self._connected_at = None
        self._error = error
        if self._began is None:
            self._began = now
        elif now - self._began >= self._patience.outage_s:
            raise _lost(self._link.node, self._patience.outage_s, error) from error
        if isinstance(error, ConnectError) and not self._told:
            self._told = True
            self._emit(Notice(f"lost the connection to {self._link.node}, reconnecting"))

    async def mend(self) -> None:
        """Have a connection again, if it was lost. Raises as `Link.reopen`."""
        if self._began is None:
            return
        patience, self._tries = self._patience, self._tries + 1
        if self._tries > 1:
            await asyncio.sleep(min(patience.pause_s * 2 ** (self._tries - 2), patience.longest_pause_s))
        elif isinstance(self._error, HungUpError):
            return  # perhaps the worker alone has died: whoever asks on the same connection learns that at once
        left = patience.outage_s - (time.monotonic() - self._began)
        try:
            async with asyncio.timeout(min(patience.attempt_s, left)):
                await self._link.reopen()
        except TimeoutError as error:
            raise ConnectError(
                ErrorCode.CONNECTION_TIMEOUT, f"{self._link.node} cannot be reached", details={"reason": "no answer"}
            ) from error

    def connected(self) -> None:
        """The worker answers again."""
        self._connected_at = time.monotonic()
        if self._told:
            self._told = False
            self._emit(Notice(f"reconnected to {self._link.node}"))

    def over(self) -> None:
        """The worker was heard: what comes next is another outage."""
        self._began = None
        self._tries = 0


def _lost(node: str, outage_s: float, error: RbeeError) -> RbeeError:
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
