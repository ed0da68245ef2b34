"""Log files of a node: their last lines, following them, and keeping them small."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import anyio

from rbee_remote.hive.layout import Layout
from rbee_remote.protocol import ErrorCode, RemoteError

MAX_BYTES = 8 * 1024 * 1024
POLL_S = 0.3
_TAIL_BLOCK = 64 * 1024
_WORKER_ID = re.compile(r"[0-9a-f]{16}")


def check_worker_id(worker: str) -> str:
    """`worker`, when it has the form of an id. Raises RemoteError USAGE."""
    if not _WORKER_ID.fullmatch(worker):
        raise RemoteError(ErrorCode.USAGE, "a worker's id has 16 hex digits")
    return worker


def log_path(layout: Layout, worker: str | None) -> Path:
    """The hive's log, or a worker's. Raises RemoteError USAGE, WORKER_GONE."""
    if worker is None:
        return layout.hive_log
    path = layout.worker_log(check_worker_id(worker))
    if not path.exists():
        raise RemoteError(ErrorCode.WORKER_GONE, f"there is no log of a worker {worker}")
    return path


def last_lines(path: Path, count: int) -> bytes:
    """At most `count` lines from the end of the file; b"" when there is no file or count is 0."""
    if count <= 0 or not path.exists():
        return b""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        data = b""
        while position > 0 and data.count(b"\n") <= count:
            step = min(_TAIL_BLOCK, position)
            position -= step
            file.seek(position)
            data = file.read(step) + data
    return b"".join(data.splitlines(keepends=True)[-count:])


async def follow(path: Path, lines: int) -> AsyncIterator[bytes]:
    """The last lines, then what is appended, for ever; b"" now and then, so that the caller can end.

    A file that was cut or replaced is read from its beginning.
    """
    yield last_lines(path, lines)
    position, inode = _size_and_inode(path)
    while True:
        await anyio.sleep(POLL_S)
        size, current = _size_and_inode(path)
        if current != inode or size < position:
            position, inode = 0, current
        if size > position:
            with path.open("rb") as file:
                file.seek(position)
                chunk = file.read(_TAIL_BLOCK)
            position += len(chunk)
            yield chunk
        else:
            yield b""


def _size_and_inode(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_ino


def rotate(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Keep one older file beside a log that has grown too large.

    Copied and cut, not renamed: the writers hold the file open for appending. A line written in between is lost.
    """
    if path.exists() and path.stat().st_size > max_bytes:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)
