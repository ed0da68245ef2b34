"""The keeper's record as it was at one moment, while others may go on writing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rbee.audit import WHAT
from rbee.base import trusted_files
from rbee_remote.protocol.audit import AUDIT_HEAD, AUDIT_LOG, HEAD_SIZE, AuditHead, unpack_head
from rbee_remote.protocol.audit_log import AuditLog, locked


@dataclass(frozen=True, slots=True)
class OpenLog:
    """name: in the folder. size: bytes that count, what comes later does not."""

    name: str
    file: BinaryIO
    size: int

    def lines(self) -> Iterator[bytes]:
        """With their newlines; the last may lack it."""
        left = self.size
        while left > 0 and (line := self.file.readline(left)):
            left -= len(line)
            yield line


@dataclass(frozen=True, slots=True)
class Snapshot:
    """logs: the first written first, none where nothing was ever recorded. head: None where there is none."""

    logs: list[OpenLog]
    head: AuditHead | None


@contextmanager
def snapshot(folder: Path) -> Iterator[Snapshot]:
    """The log in `folder`, open for as long as the context lasts.

    Raises OSError, and ConfigError for a log that somebody else can write.
    """
    trusted_files.check(folder / AUDIT_HEAD, WHAT)
    logs: list[OpenLog] = []
    try:
        try:
            with locked(folder / AUDIT_HEAD, os.O_RDONLY, fcntl.LOCK_SH) as lock:
                head = unpack_head(os.pread(lock, HEAD_SIZE, 0))
                _open_all(folder, logs)
        except FileNotFoundError:
            head = None
            _open_all(folder, logs)
        yield Snapshot(logs, head)
    finally:
        for log in logs:
            log.file.close()


def _open_all(folder: Path, logs: list[OpenLog]) -> None:
    for path in (*AuditLog(folder).rotated(), folder / AUDIT_LOG):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            continue
        status = os.fstat(file.fileno())
        logs.append(OpenLog(path.name, file, status.st_size))
        trusted_files.judge(status, path, WHAT)
