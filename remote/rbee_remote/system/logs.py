"""Log files of a node: their last lines, and keeping them small. Keepers read them with `tail`, hive or no hive."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from rbee_remote.protocol import ErrorCode, RemoteError

_log = logging.getLogger(__name__)

MAX_BYTES = 8 * 1024 * 1024
_TAIL_BLOCK = 64 * 1024
_WORKER_ID = re.compile(r"[0-9a-f]{16}")


def check_worker_id(worker: str) -> str:
    """`worker`, when it has the form of an id. Raises RemoteError USAGE."""
    if not _WORKER_ID.fullmatch(worker):
        raise RemoteError(ErrorCode.USAGE, "a worker's id has 16 hex digits")
    return worker


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


def rotate(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Keep one older file beside a log that has grown too large.

    Copied and cut, not renamed: the writers hold the file open for appending. A line written in between is lost, and
    where the disk has no room for the copy, so is what is cut. Never raises OSError: a log is not worth a hive's life.
    """
    try:
        if path.exists() and path.stat().st_size > max_bytes:
            _copy_if_there_is_room(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)
    except OSError as error:
        _log.warning("%s cannot be cut: %s", path, error)


def _copy_if_there_is_room(path: Path, copy: Path) -> None:
    try:
        shutil.copyfile(path, copy)
    except OSError as error:
        _log.warning("%s is cut without a copy: %s", path, error)
        copy.unlink(missing_ok=True)
