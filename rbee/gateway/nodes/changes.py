"""Something changed: who waits for that is woken."""

from __future__ import annotations

import asyncio


class Changes:
    """version: grows with each change."""

    def __init__(self) -> None:
        self.version = 0
        self._next = asyncio.Event()

    def tell(self) -> None:
        self.version += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, seen: int) -> None:
        """Return once `version` is another than `seen`."""
        while self.version == seen:
            await self._next.wait()
