"""The pipe to the hive: status lines one way, and the news that the hive is gone the other.

Rules
- A hive that reads slowly misses what is out of date by then, never the last line.
- It misses no request that was served, unless it is so slow that MOST_SERVED of them wait. When it is gone, they are
  `unsent`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

from rbee_remote.protocol import Served, WorkerStatus, encode

#: Served requests in one line, so that it stays far below what a hive reads as one, and that wait for a slow hive.
SERVED_PER_LINE = 128
MOST_SERVED = 10_000

_log = logging.getLogger("rbee.worker")


class StatusPipe:
    """Owns the write end `fd`. on_gone: called once, when nobody holds the read end any more."""

    def __init__(self, fd: int, on_gone: Callable[[], None]) -> None:
        self._fd = fd
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._partial = b""
        self._latest: WorkerStatus | None = None
        self._served: deque[Served] = deque()
        self._lost = 0
        self._flushed = asyncio.Event()
        self._open = True
        os.set_blocking(fd, False)
        # A write end becomes readable when its last reader closes: asyncio's own pipe transports rely on it.
        self._loop.add_reader(fd, self._gone)

    def write(self, status: WorkerStatus) -> None:
        """Send a line now, or as soon as the pipe takes it, unless a later one comes first; what it says to be served
        is sent in any case."""
        self._served.extend(status.served)
        self._drop_the_oldest()
        self._latest = replace(status, served=())
        self._flush()

    async def flushed(self, patience_s: float) -> None:
        """Return when all is sent, the hive is gone, or after that time."""
        if self._open and (self._partial or self._latest):
            self._flushed.clear()
            handle = self._loop.call_later(patience_s, self._flushed.set)
            await self._flushed.wait()
            handle.cancel()

    def unsent(self) -> list[Served]:
        """Requests of which no hive will ever read, each once."""
        if self._open:
            return []
        left = [*self._served]
        self._served.clear()
        return left

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._flushed.set()

    def _flush(self) -> None:
        while self._open and (self._partial or self._latest):
            if not self._partial:
                self._partial = self._next_line()
            try:
                written = os.write(self._fd, self._partial)
            except BlockingIOError:
                self._loop.add_writer(self._fd, self._flush)
                return
            except BrokenPipeError:
                self._gone()
                return
            self._partial = self._partial[written:]
        if self._open:
            self._loop.remove_writer(self._fd)
        self._flushed.set()

    def _next_line(self) -> bytes:
        """The latest status, with what was served since the line before, or with the first part of it."""
        assert self._latest is not None
        served = tuple(islice(self._served, SERVED_PER_LINE))
        for _ in served:
            self._served.popleft()
        line = json.dumps(encode(replace(self._latest, served=served))).encode() + b"\n"
        if not self._served:
            self._latest = None
        return line

    def _drop_the_oldest(self) -> None:
        while len(self._served) > MOST_SERVED:
            self._served.popleft()
            if self._lost % MOST_SERVED == 0:
                _log.warning("the hive does not read: %d served requests are missing in its log", self._lost + 1)
            self._lost += 1

    def _gone(self) -> None:
        self.close()
        self._on_gone()
