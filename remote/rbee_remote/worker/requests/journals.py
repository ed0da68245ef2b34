"""The journals of a worker's requests, by request id: of those that are open, and for a while of those that have ended.

Rules
- A client whose connection broke comes back with the same id: for the rest of the events, or, where it has seen none,
  with the same request again, which is then not computed twice.
- A running request that nobody follows goes on for ORPHAN_S; whoever follows it again stops that clock.
- One that still waits for its slot is given up at once, and leaves no trace: it has cost nothing, nobody has seen an
  event of it, and its client may come again.
- What is kept of ended requests is bounded in time, number and bytes.
- Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from rbee_remote.protocol import Done, ErrorCode, GenerateRequest, RemoteError, encode
from rbee_remote.worker.requests.journal import Journal

#: How long a running request goes on for a client whose connection dropped, before its slot is free for others.
ORPHAN_S = 60.0

#: What stays of ended requests at most: seconds since the end of each, and requests and bytes of all of them.
KEEP_S = 60.0
KEEP_REQUESTS = 256
KEEP_BYTES = 32 * 2**20


class End(Protocol):
    def __call__(self, request_id: str, reason: str, *, only_waiting: bool = False) -> bool:
        """End an open request (only_waiting: one that has no slot); False if there is none."""


@dataclass(slots=True, eq=False)
class _Entry:
    """digest: of the request. followers: responses that are open. orphan: ends it. expiry: forgets it once it ended."""

    key: str
    journal: Journal
    digest: bytes
    followers: int = 0
    orphan: asyncio.TimerHandle | None = None
    expiry: asyncio.TimerHandle | None = None


class Journals:
    """end: ends a request that its clients have left."""

    def __init__(self, end: End) -> None:
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._entries: dict[str, _Entry] = {}
        self._ended: dict[str, _Entry] = {}  # the longest ended first

    def open(self, request: GenerateRequest) -> Journal:
        """A journal for a request whose id is not known yet."""
        key = request.request_id
        entry = self._entries[key] = _Entry(key, Journal(), _digest(request))
        entry.journal.when_closed(lambda: self._on_closed(entry))
        return entry.journal

    def find(self, request_id: str) -> Journal:
        """Raises RemoteError REQUEST_GONE."""
        entry = self._entries.get(request_id)
        if entry is None:
            raise RemoteError(
                ErrorCode.REQUEST_GONE,
                f"there is no request {request_id}",
                hint=f"events are kept for {KEEP_S:g} s after a request ends, or less where there are many",
            )
        return entry.journal

    def same(self, request: GenerateRequest) -> Journal | None:
        """The journal of this very request, should it have come before. Raises RemoteError USAGE where another request
        has its id."""
        entry = self._entries.get(request.request_id)
        if entry is None:
            return None
        if entry.digest != _digest(request):
            raise RemoteError(ErrorCode.USAGE, f"request_id {request.request_id} is in use by another request")
        return entry.journal

    def forget(self, request_id: str, journal: Journal) -> None:
        """Have the next request of this id begin anew."""
        entry = self._entries.get(request_id)
        if entry and entry.journal is journal:
            self._drop(entry)

    @contextmanager
    def following(self, request_id: str) -> Iterator[Journal]:
        """While a response with the events of the request is open. Raises RemoteError REQUEST_GONE."""
        journal = self.find(request_id)
        entry = self._entries[request_id]
        entry.followers += 1
        if entry.orphan:
            entry.orphan.cancel()
        try:
            yield journal
        finally:
            entry.followers -= 1
            if not entry.followers and not journal.closed:
                self._on_left(entry)

    @property
    def running(self) -> list[Journal]:
        """Of requests that have not ended."""
        return [entry.journal for entry in self._entries.values() if not entry.journal.closed]

    @property
    def unread(self) -> bool:
        """Whether an answer is there whose client went away before its end, and may come back for it."""
        return any(
            isinstance(done := entry.journal.last, Done)
            and done.finish_reason in ("stop", "tool_calls", "length")
            and not (entry.journal.read or entry.followers)
            for entry in self._ended.values()
        )

    def _on_left(self, entry: _Entry) -> None:
        if self._end(entry.key, "canceled", only_waiting=True):
            self._drop(entry)
        else:
            entry.orphan = self._loop.call_later(ORPHAN_S, self._end, entry.key, "canceled")

    def _on_closed(self, entry: _Entry) -> None:
        if entry.orphan:
            entry.orphan.cancel()
        if self._entries.get(entry.key) is not entry:
            return  # it was forgotten before its end
        entry.expiry = self._loop.call_later(KEEP_S, self._drop, entry)
        self._ended[entry.key] = entry
        weight = sum(ended.journal.weight for ended in self._ended.values())
        while len(self._ended) > KEEP_REQUESTS or (weight > KEEP_BYTES and len(self._ended) > 1):
            oldest = next(iter(self._ended.values()))
            weight -= oldest.journal.weight
            self._drop(oldest)

    def _drop(self, entry: _Entry) -> None:
        for table in (self._entries, self._ended):
            if table.get(entry.key) is entry:
                del table[entry.key]
        for timer in (entry.orphan, entry.expiry):
            if timer:
                timer.cancel()


def _digest(request: GenerateRequest) -> bytes:
    """Of everything but the deadline, which is a little nearer each time that a client asks."""
    content = json.dumps(encode(replace(request, timeout_s=None)), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()
