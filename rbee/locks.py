"""Locks between the rbee processes of one keeper. The kernel releases them when their process ends, however it ends."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rbee.events import Emit, Notice
from rbee.settings import Settings


@asynccontextmanager
async def keeper_lock(settings: Settings, name: str, what: str, emit: Emit) -> AsyncIterator[None]:
    """Only one process of this keeper at a time is inside, for each `name`.

    what: what the holder does, for the notice that others show while they wait ("prepares gpu1").
    """
    path = settings.cache / "locks" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock"
    async with file_lock(path, what, emit):
        yield


@asynccontextmanager
async def file_lock(path: Path, what: str, emit: Emit) -> AsyncIterator[None]:
    """Like `keeper_lock`, for everybody who names the same file."""
    from filelock import AsyncFileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = AsyncFileLock(path, poll_interval=0.1)
    try:
        await lock.acquire(timeout=0)
    except Timeout:
        emit(Notice(f"waiting: another rbee {what}"))
        await lock.acquire(timeout=-1)
    try:
        yield
    finally:
        await lock.release()
