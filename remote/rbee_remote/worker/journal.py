"""The events of one request, kept in a list that its response reads from.

A response that starts later, or starts again after a dropped connection, reads the same list from where it stopped.
Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import anyio

from rbee_remote.protocol import Done, RemoteError, Started, TokenEvent, encode

Event = Started | TokenEvent | Done | RemoteError

_NAMES: dict[type, str] = {Started: "started", TokenEvent: "token", Done: "done", RemoteError: "error"}


class Record(NamedTuple):
    """id: sequence number from 1. event: started, token, done or error. data: JSON values."""

    id: int
    event: str
    data: dict[str, Any]


class Signal:
    """Wakes everybody who waits at the moment of a `notify`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """False when nobody called within `timeout_s`."""
        event = self._event
        with anyio.move_on_after(timeout_s):
            await event.wait()
        return event.is_set()


class Journal:
    """Ends with a `done` or an `error`, after which nothing is added."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._grown = Signal()
        self._on_close: list[Callable[[], None]] = []
        self.closed = False

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call back once the last event is in, before it is read."""
        self._on_close.append(callback)

    def append(self, event: Event) -> None:
        if self.closed:
            raise RuntimeError("an event came after the last one")
        data = event.encode() if isinstance(event, RemoteError) else encode(event)
        self._records.append(Record(len(self._records) + 1, _NAMES[type(event)], data))
        self.closed = isinstance(event, (Done, RemoteError))
        if self.closed:
            for callback in self._on_close:
                callback()
        self._grown.notify()

    async def follow(self, heartbeat_s: float, after: int = 0) -> AsyncIterator[Record | None]:
        """Records with an id above `after`, those to come included; None for each `heartbeat_s` without one."""
        position = after
        while True:
            while position < len(self._records):
                yield self._records[position]
                position += 1
            if self.closed:
                return
            if not await self._grown.wait(heartbeat_s):
                yield None
