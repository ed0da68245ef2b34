"""What a worker tells those who follow it: its status, and what its slots hold, at each change.

Rules
- Everything here belongs to the event loop's thread, and costs nothing while nobody follows.
- A follower hears of a change within INTERVAL_S, and of many within that time once.
- What is told of memories fits into one event, however long the prompts are: the start of each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

from rbee_remote.protocol import SlotMemory, WorkerNews
from rbee_remote.worker.service.state import State

#: Seconds between two events of one follower at least. What a request changes is told when it begins, and when it ends
#: unless it was shorter; a gateway counts its own by itself, and each event costs it a millisecond.
INTERVAL_S = 0.2
#: Digests of all slots together: each is 20 bytes of JSON, and a keeper reads events of up to a megabyte.
MOST_TOLD = 40_000


class News:
    """state: whose changes wake the followers. typical_s: as in WorkerNews, asked for at each event."""

    def __init__(self, state: State, slots: int, typical_s: Callable[[], float]) -> None:
        self._state = state
        self._typical_s = typical_s
        self._most = max(1, MOST_TOLD // max(slots, 1))  # a number that makes no sense is refused by the load
        self._held: list[tuple[str, ...]] = [()] * slots
        self._changed_at = [0] * slots  # what `_count` was with the slot's last change
        self._count = 0
        self._is_over = False

    def on_memory(self, held: Mapping[int, tuple[str, ...]]) -> None:
        """What these slots hold, by slot."""
        changed = {slot: digests for slot, digests in held.items() if digests != self._held[slot]}
        if changed:
            self._count += 1
            for slot, digests in changed.items():
                self._held[slot], self._changed_at[slot] = digests, self._count
            self._state.changed.notify()

    def end(self) -> None:
        """The worker is over: what follows is the last event."""
        self._is_over = True
        self._state.changed.notify()

    async def follow(self, heartbeat_s: float) -> AsyncIterator[WorkerNews | None]:
        """News at once and at each change, until the worker is over; None for each `heartbeat_s` without one."""
        told = -1
        while True:
            seen, is_over = self._state.changed.count, self._is_over
            slots = [slot for slot, changed_at in enumerate(self._changed_at) if changed_at > told]
            told = self._count
            memories = tuple(SlotMemory(slot, self._held[slot][: self._most]) for slot in slots)
            yield WorkerNews(self._state.status(), memories, self._typical_s())
            if is_over:
                return
            await asyncio.sleep(INTERVAL_S)
            while not await self._state.changed.wait(heartbeat_s, seen=seen):
                yield None
