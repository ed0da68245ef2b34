"""The pipe to the hive: status lines one way, and the news that the hive is gone the other.

A hive that reads slowly misses what is out of date by then, never the last line.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable

from rbee_remote.protocol import WorkerStatus, encode


class StatusPipe:
    """Owns the write end `fd`. on_gone: called once, when nobody holds the read end any more."""

    def __init__(self, fd: int, on_gone: Callable[[], None]) -> None:
        self._fd = fd
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._partial = b""
        self._latest: WorkerStatus | None = None
        self._open = True
        os.set_blocking(fd, False)
        # A write end becomes readable when its last reader closes: asyncio's own pipe transports rely on it.
        self._loop.add_reader(fd, self._gone)

    def write(self, status: WorkerStatus) -> None:
        """Send a line now, or as soon as the pipe takes it, unless a later one comes first."""
        self._latest = status
        self._flush()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            os.close(self._fd)

    def _flush(self) -> None:
        while self._open and (self._partial or self._latest):
            if not self._partial and self._latest:
                self._partial = json.dumps(encode(self._latest)).encode() + b"\n"
                self._latest = None
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

    def _gone(self) -> None:
        self.close()
        self._on_gone()
