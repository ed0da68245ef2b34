"""The events of one request, kept in a list that its response reads from.

A response that starts later, or starts again after a dropped connection, reads the same list from where it stopped.
Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from rbee_remote.protocol import Done, RemoteError, Served, Started, TokenEvent, encode
from rbee_remote.system.caller import Caller
from rbee_remote.system.changes import Changes

Event = Started | TokenEvent | Done | RemoteError

_NAMES: dict[type, str] = {Started: "started", TokenEvent: "token", Done: "done", RemoteError: "error"}


#: What a short event takes in CPython, and each probability that is told with one.
_EVENT_BYTES = 200
_LOGPROB_BYTES = 300


class Record(NamedTuple):
    """id: sequence number from 1. event: started, token, done or error. data: JSON values."""

    id: int
    event: str
    data: dict[str, Any]


class Journal:
    """Ends with a `done` or an `error`, after which nothing is added.

    read: whether somebody has read the last event. weight: about how many bytes of memory the events take.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._grown = Changes()
        self._on_close: list[Callable[[], None]] = []
        self.closed = False
        self.read = False
        self.weight = 0

    @property
    def last_id(self) -> int:
        """Of the last event, which is how many there are."""
        return len(self._events)

    @property
    def first(self) -> Event | None:
        return self._events[0] if self._events else None

    @property
    def last(self) -> Event | None:
        return self._events[-1] if self._events else None

    def served(self, request_id: str, caller: Caller) -> Served:
        """What the audit log has of it, once it is closed."""
        first, last = self.first, self.last
        finish = last.finish_reason if isinstance(last, Done) else ""
        if isinstance(last, RemoteError):
            finish = last.code.value.lower()
        prompt = first.prompt_tokens if isinstance(first, Started) else 0
        tokens = next((event.tokens for event in reversed(self._events) if isinstance(event, TokenEvent)), 0)
        return Served(request_id, caller.keeper, caller.who, prompt, tokens, finish)

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Call back once the last event is in, before it is read."""
        self._on_close.append(callback)

    def append(self, event: Event) -> None:
        if self.closed:
            raise RuntimeError("an event came after the last one")
        self._events.append(event)
        self.weight += _weight(event)
        self.closed = isinstance(event, (Done, RemoteError))
        if self.closed:
            for callback in self._on_close:
                callback()
        self._grown.notify()

    async def follow(self, heartbeat_s: float, after: int = 0) -> AsyncIterator[Record | None]:
        """Records with an id above `after`, those to come included; None for each `heartbeat_s` without one."""
        position = after
        while True:
            while position < len(self._events):
                event = self._events[position]
                position += 1
                yield _record(position, event)
            if self.closed:
                self.read = True
                return
            if not await self._grown.wait(heartbeat_s):
                yield None


def _record(number: int, event: Event) -> Record:
    if isinstance(event, TokenEvent) and event.logprobs is None:  # nearly all of them
        data: dict[str, Any] = {"text": event.text, "tokens": event.tokens, "logprobs": None}
        if event.reasoning:
            data["reasoning"] = event.reasoning
        if event.calls:
            data["calls"] = [encode(call) for call in event.calls]
        if event.token is not None:
            data["token"] = event.token
        return Record(number, "token", data)
    data = event.encode() if isinstance(event, RemoteError) else encode(event)
    if data.get("token", 0) is None:
        del data["token"]
    return Record(number, _NAMES[type(event)], data)


def _weight(event: Event) -> int:
    if not isinstance(event, TokenEvent):
        return _EVENT_BYTES
    told = 0 if event.logprobs is None else 1 + len(event.logprobs.top)
    characters = len(event.text) + len(event.reasoning)
    if event.calls:
        characters += sum(len(call.name) + len(call.arguments) for call in event.calls)
    return _EVENT_BYTES * (1 + len(event.calls)) + 4 * characters + told * _LOGPROB_BYTES
