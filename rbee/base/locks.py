"""Locks between the rbee processes of one keeper. The kernel releases them when their process ends, however it ends.

Rules
- A lock's file is never removed: who has opened it may be about to lock it, and would then share the lock with whoever
  made the file anew.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from rbee.base.errors import ConfigError
from rbee.base.events import Emit, Notice
from rbee.base.settings import Settings, make_private_folder


@asynccontextmanager
async def keeper_lock(settings: Settings, name: str, what: str, emit: Emit) -> AsyncIterator[bool]:
    """Only one process of this keeper at a time is inside, for each `name`. Yields whether another one was.

    what: what the holder does, for the notice that others show while they wait ("prepares gpu1").
    """
    async with file_lock(keeper_lock_path(settings, name), what, emit) as waited:
        yield waited


def keeper_lock_path(settings: Settings, name: str) -> Path:
    """The file of a `keeper_lock`."""
    return settings.cache / "locks" / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name)}.lock"


@asynccontextmanager
async def file_lock(path: Path, what: str, emit: Emit) -> AsyncIterator[bool]:
    """Like `keeper_lock`, for everybody who names the same file."""
    from filelock import AsyncFileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock, waited = AsyncFileLock(path, poll_interval=0.1), False
    try:
        await lock.acquire(timeout=0)
    except Timeout:
        waited = True
        emit(Notice(f"waiting: another rbee {what}"))
        await lock.acquire(timeout=-1)
    try:
        yield waited
    finally:
        await lock.release()


@contextmanager
def held_at_once(path: Path) -> Iterator[bool]:
    """Hold the lock whose file is `path` if nobody does; yields whether. For who has nothing to wait for.

    Raises ConfigError where its folder cannot be made or written.
    """
    from filelock import FileLock, Timeout

    make_private_folder(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise ConfigError(f"cannot use the lock {path}: {error.strerror}") from error
    try:
        yield True
    finally:
        lock.release()
