"""Many files to a node under one progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from rbee.base.events import Emit, Progress
from rbee.transport.connection import Connection, OnBytes, quote

#: Small files cost round trips, not bytes: several at once hide the way there and back.
AT_ONCE = 4


class Named(Protocol):
    """A file, wherever it is. sha256: lower-case hex of all its bytes."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...


class Sendable(Named, Protocol):
    """A file of this machine, or one that is only in memory. size: bytes."""

    @property
    def source(self) -> Path | bytes: ...

    @property
    def size(self) -> int: ...


async def put_files(
    connection: Connection,
    files: Sequence[tuple[Sendable, str]],
    key: str,
    text: str,
    emit: Emit,
    *,
    mode: int = 0o600,
) -> None:
    """Put each file at its absolute path on the node; one that is there stays. Names on the node tell contents.

    Raises what `Connection.put` raises, the first of several.
    """
    present = await _present(connection, [target for _, target in files])
    missing = [(file, target) for file, target in files if target not in present]
    if not missing:
        return
    total = sum(file.size for file, _ in missing)
    done = dict.fromkeys((target for _, target in missing), 0)
    slots = asyncio.Semaphore(AT_ONCE)

    def listener(target: str) -> OnBytes:
        def on_bytes(count: int, _total: int) -> None:
            done[target] = count
            emit(Progress(key, text, float(sum(done.values())), float(total)))

        return on_bytes

    async def upload(file: Sendable, target: str) -> None:
        async with slots:
            await connection.put(file.source, target, sha256=file.sha256, mode=mode, on_bytes=listener(target))

    tasks = [asyncio.create_task(upload(file, target), name=PurePosixPath(target).name) for file, target in missing]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _present(connection: Connection, targets: Sequence[str]) -> set[str]:
    """Which of the files are there, in one round trip."""
    words = " ".join(map(quote, targets))
    script = f'for file in {words}; do [ -f "$file" ] && printf "%s\\n" "$file"; done; true'
    result = await connection.run(script)
    return set(result.stdout.decode().splitlines())
