"""What a hive tells those who follow it: its workers and its catalog, at once and at each change; and who watches hears
every second how much there is to do.

A follower costs nothing between two changes but a comment every few seconds, and keeps nothing alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from rbee_remote.hive import readings
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.readings import Readings
from rbee_remote.hive.supervisor import Supervisor
from rbee_remote.protocol import HiveNews, NodeLoad
from rbee_remote.system.changes import Changes

#: Seconds between two events of one follower at least.
INTERVAL_S = 0.25


class News:
    def __init__(self, supervisor: Supervisor, catalog: Catalog) -> None:
        self._supervisor = supervisor
        self._catalog = catalog
        self._changed = supervisor.changed.whole = catalog.changed.whole = Changes()
        self._is_over = False
        self._readings = Readings(supervisor.workers)

    def end(self) -> None:
        """The hive ends: what follows is the last event."""
        self._is_over = True
        self._changed.notify()

    async def follow(self, heartbeat_s: float) -> AsyncGenerator[HiveNews | None, None]:
        """News at once and at each change, until the hive ends; None for each `heartbeat_s` without one."""
        told = -1
        while True:
            is_over, models = self._is_over, None
            if told != self._catalog.changed.count:
                models = tuple(self._catalog.list())  # which may drop records
                told = self._catalog.changed.count
            seen = self._changed.count
            yield HiveNews(tuple(worker.info() for worker in self._supervisor.workers()), models)
            if is_over:
                return
            await asyncio.sleep(INTERVAL_S)
            while not await self._changed.wait(heartbeat_s, seen=seen):
                yield None

    async def watch(self) -> AsyncGenerator[HiveNews | NodeLoad, None]:
        """As `follow`, with a reading at once and then every second, whatever else is told."""
        read_at = -readings.INTERVAL_S
        async with aclosing(self.follow(readings.INTERVAL_S)) as followed:
            async for news in followed:
                if news is not None:
                    yield news
                now = asyncio.get_running_loop().time()
                if now - read_at >= readings.INTERVAL_S * 0.9:
                    read_at = now
                    yield await self._readings.now()
