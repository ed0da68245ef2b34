"""The files behind an audit log: lines that are appended by any number of processes, and their head.

Rules
- `audit.head` is the lock (flock) and is never replaced; writers hold it, readers take a snapshot under it.
- The line is written first, then the head. A writer that dies between leaves a head that is one line behind, one that
  is cut short leaves half a line behind the last: both are put right by the next. Everything else that does not fit is
  left as it is, and stays a break in the chain.
- A log that has become large goes under a numbered, dated name, and the next begins with its digest.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rbee_remote.protocol.audit import (
    AUDIT_HEAD,
    AUDIT_LOG,
    GENESIS,
    HEAD_SIZE,
    AuditHead,
    digest_of,
    make_line,
    pack_head,
    unpack_head,
)

ROTATE_AT_BYTES = 8 * 2**20
#: For how long the lock is waited for: whoever holds it for longer is stopped, or on a file system that hangs.
LOCK_PATIENCE_S = 2.0

#: More than the longest line, so that the last two lines are in it.
_TAIL_BYTES = 64 * 1024
#: The name of a file that was put away.
ROTATED = re.compile(r"audit-(\d{4,})-\d{8}\.log")


class AuditLog:
    """The log in `folder`, which exists."""

    def __init__(self, folder: Path, *, rotate_at: int = ROTATE_AT_BYTES) -> None:
        self._folder = folder
        self._path = folder / AUDIT_LOG
        self._rotate_at = rotate_at

    def append(self, entry: dict[str, Any]) -> None:
        """Append a line, whole or not at all. Raises OSError: TimeoutError for a lock that is not let go."""
        with locked(self._folder / AUDIT_HEAD, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX) as lock:
            head = self._mended(lock)
            if self._size() >= self._rotate_at:
                head = self._rotate(lock, head)
            self._write(lock, entry, head)

    def head(self) -> str:
        """The digest of the last line, "" where there is none, or where it cannot be read."""
        try:
            with locked(self._folder / AUDIT_HEAD, os.O_RDONLY, fcntl.LOCK_SH) as lock:
                head = unpack_head(os.pread(lock, HEAD_SIZE, 0))
        except OSError:
            return ""
        return head.digest if head and head.lines else ""

    def rotated(self) -> list[Path]:
        """The files that were put away, the first written first."""
        found = ((ROTATED.fullmatch(path.name), path) for path in self._folder.glob("audit-*.log"))
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def _mended(self, lock: int) -> AuditHead:
        """The head to chain to, after what a writer that died left behind has been put right."""
        head = unpack_head(os.pread(lock, HEAD_SIZE, 0))
        lines, torn = _tail(self._path)
        if head is None:
            if not lines and not torn:
                return AuditHead()
            head = AuditHead(_count_lines(self._path), GENESIS)  # chained to nothing: a break that stays
        if lines and digest_of(lines[-1]) != head.digest and _follows(lines, head):
            head = AuditHead(head.lines + 1, digest_of(lines[-1]))
        if not lines and head.lines and self._was_rotated(head):
            return self._begin(lock, head)
        if torn and (digest_of(lines[-1]) if lines else GENESIS) == head.digest:
            self._cut(self._size() - len(torn))
        elif torn:
            self._put(b"\n")
        return head

    def _was_rotated(self, head: AuditHead) -> bool:
        files = self.rotated()
        lines = _tail(files[-1])[0] if files else []
        return bool(lines) and digest_of(lines[-1]) == head.digest

    def _rotate(self, lock: int, head: AuditHead) -> AuditHead:
        files = self.rotated()
        match = ROTATED.fullmatch(files[-1].name) if files else None
        number = int(match[1]) + 1 if match else 1
        self._path.rename(self._folder / f"audit-{number:04d}-{datetime.now(timezone.utc):%Y%m%d}.log")
        return self._begin(lock, head)

    def _begin(self, lock: int, head: AuditHead) -> AuditHead:
        """The first line of the next file, chained to the last of the one before."""
        entry = {"action": "audit.rotated", "before": self.rotated()[-1].name, "lines": head.lines}
        return self._write(lock, entry, AuditHead(0, head.digest))

    def _write(self, lock: int, entry: dict[str, Any], head: AuditHead) -> AuditHead:
        line = make_line(entry, head.digest)
        size = self._size()
        after = AuditHead(head.lines + 1, digest_of(line))
        if not os.fstat(lock).st_size:
            _write_whole(lock, pack_head(head))
        self._put(line + b"\n")
        try:
            _write_whole(lock, pack_head(after))
        except OSError:
            self._cut(size)
            raise
        return after

    def _put(self, data: bytes) -> None:
        """Append to the file, all or nothing."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def _cut(self, size: int) -> None:
        """By a descriptor: a confined worker writes this log too, and cannot empty a file by its path."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)


@contextmanager
def locked(head: Path, flags: int, kind: int) -> Iterator[int]:
    """`audit.head`, opened with `flags` and locked: LOCK_EX to write, LOCK_SH to read; its descriptor.

    Raises OSError: FileNotFoundError where there is none, TimeoutError for a lock that is not let go.
    """
    lock = os.open(head, flags | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock") from None
                time.sleep(0.005)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
                break  # a network file system without locks: there is one writer on it, as a rule
        yield lock
    finally:
        os.close(lock)


def _write_whole(descriptor: int, data: bytes) -> None:
    """In place, at the beginning of the file."""
    if os.pwrite(descriptor, data, 0) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _tail(path: Path) -> tuple[list[bytes], bytes]:
    """The last lines of a file, the last two at least, and what follows the last newline."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            content = file.read()
    except FileNotFoundError:
        return [], b""
    whole, newline, torn = content.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    return lines, torn


def _follows(lines: list[bytes], head: AuditHead) -> bool:
    """Whether the last line was chained to the one that the head tells of, and stands behind it."""
    before = digest_of(lines[-2]) if len(lines) > 1 else GENESIS
    try:
        entry = json.loads(lines[-1])
    except (ValueError, RecursionError):
        return False
    return before == head.digest and isinstance(entry, dict) and entry.get("previous") == before


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
