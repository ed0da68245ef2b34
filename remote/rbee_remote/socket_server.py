"""uvicorn as hive and worker run it: on a socket that is bound already, without signals, without ticking."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn


class SocketServer(uvicorn.Server):
    """Serves `app` until `end` is called. grace_s: seconds that running responses get then."""

    def __init__(self, app: Any, *, grace_s: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http="h11",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=grace_s,
            )
        )
        self._end = asyncio.Event()

    def end(self) -> None:
        self.should_exit = True
        self._end.set()

    async def main_loop(self) -> None:
        """uvicorn's own wakes up ten times a second, which is all that an idle process would do."""
        await self.on_tick(0)  # the default headers
        await self._end.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM has to end requests first, and the server after them: whoever runs this handles it."""
        yield
