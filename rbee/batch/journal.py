"""The output's file: what a run has done, and where it goes on.

Rules
- A line is in the output once, and whole: it is appended by one write, and what of a last one a crash has left is cut
  off when the run goes on. So the output itself says what is done; nothing else is needed to go on.
- In the input's order, lines that come before their turn are appended to OUTPUT.ahead, whole likewise. The output is
  always the beginning of the whole then. What is in both counts once. OUTPUT.ahead is emptied when the output has all
  of it on the disk, and is gone at the end.
- Written lines reach the disk SYNC_S later at most: what a power cut takes is asked again.
- A disk that is full takes no half of a line: what was written of it is taken back, and the run ends.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from rbee.base.errors import RbeeError, UsageError
from rbee.batch.numbers import Numbers
from rbee.batch.results import Known, Run, is_begun, known
from rbee_remote.protocol import ErrorCode

#: Seconds between two times that what was written is put on the disk.
SYNC_S = 1.0
AHEAD = ".ahead"
#: Bytes: some file systems show zeros of what never reached the disk, where that may be all that a file has.
_MOST_ZEROS = 2**20


def ahead_of(out: Path) -> Path:
    """Where lines wait for their turn."""
    return Path(f"{out}{AHEAD}")


class Journal:
    """Used as `with Journal(…) as journal`: no other run has the output meanwhile.

    in_order: as the input is, or as lines are done. done: numbers of lines that need nothing any more. failed, tokens:
    of those.

    Raises, when it is entered, UsageError for an output of something else, RbeeError IN_USE where another run has it.
    """

    def __init__(self, path: Path, run: Run, *, in_order: bool) -> None:
        self.path = path
        self.done = Numbers()
        self.failed = 0
        self.tokens = 0
        self.run = run
        self._in_order = in_order
        self._out = -1
        self._ahead = -1
        self._ahead_path = ahead_of(path)
        self._was_read = False
        self._held: dict[int, tuple[int, int]] = {}  # lines that are ahead: where in that file
        self._turns: deque[int] = deque()  # lines that were begun and are not in the output
        self._dirty: set[int] = set()

    def __enter__(self) -> Self:
        try:
            self._out = self._open(self.path)
            self._lock()
            self._ahead = self._open(self._ahead_path)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.sync()
            if self._was_read and not self._held:
                with suppress(FileNotFoundError):
                    self._ahead_path.unlink()
        finally:
            self._close()

    # --- what is there ------------------------------------------------------------------------------------------

    def begin_anew(self) -> None:
        """Forget what is there, of whichever run. Raises UsageError for what no run has written."""
        for file, path in ((self._ahead, self._ahead_path), (self._out, self.path)):
            next(self._known(file, path, checks=False), None)
        for file in (self._ahead, self._out):
            os.ftruncate(file, 0)

    def read(self) -> None:
        """What is done; what is left of a torn line is cut off. Raises UsageError where it is not this run's."""
        for line, _, _ in self._known(self._out, self.path):
            self._note(line)
        for line, at, size in self._known(self._ahead, self._ahead_path):
            if line.number not in self.done:
                self._note(line)
                self._held[line.number] = at, size
        if not self._in_order:
            for number in sorted(self._held):
                self._release(number)
            self._empty_ahead()
        self._was_read = True

    def take_back_failed(self) -> int:
        """Have the lines that failed be asked again; how many. To be called before `read`.

        Those that did not are copied beside the output before it is emptied, so that none is lost on the way.
        """
        kept = [(at, size) for line, at, size in self._known(self._out, self.path) if not line.failed]
        ahead = [(at, size) for line, at, size in self._known(self._ahead, self._ahead_path) if not line.failed]
        before = sum(1 for _ in self._known(self._out, self.path)) + sum(1 for _ in self._known(self._ahead, self.path))
        if len(kept) + len(ahead) == before:
            return 0
        fresh = self._ahead_path.with_name(self._ahead_path.name + ".new")
        target = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for file, spans in ((self._out, kept), (self._ahead, ahead)):
            for at, size in spans:
                self._append(target, _read(file, at, size), fresh)
        os.fsync(target)
        fresh.rename(self._ahead_path)
        _sync_folder(fresh.parent)
        os.close(self._ahead)
        self._ahead = target
        os.ftruncate(self._out, 0)
        return before - len(kept) - len(ahead)

    def _known(self, file: int, path: Path, *, checks: bool = True) -> Iterator[tuple[Known, int, int]]:
        """Lines with where they begin and their size; what a crash has left behind the last whole one is cut off.

        checks: that they are this run's. Raises UsageError for those of another one, and for what is of none.
        """
        at = 0
        with os.fdopen(os.dup(file), "rb") as reader:
            reader.seek(0)
            if not _may_be_ours(reader):
                raise _foreign(path)
            for line in reader:
                found = known(line)
                if found is None:
                    if not (line[:1] == b"\0" if at else not line.strip(b"\0")) and not is_begun(line):
                        raise _foreign(path)
                    os.ftruncate(file, at)
                    return
                if checks:
                    self._check(found, path)
                yield found, at, len(line)
                at += len(line)

    def _check(self, found: Known, path: Path) -> None:
        if found.run.source != self.run.source:
            raise UsageError(
                f"{path} has answers to another input: the input has changed since, or is another file",
                hint="take another --out, or --restart to throw away what is there",
            )
        if found.run.options != self.run.options:
            raise UsageError(
                f"{path} has answers to the same input with other options (model, template, defaults or form)",
                hint="go on with the same ones, take another --out, or --restart to throw away what is there",
            )

    def _note(self, line: Known) -> None:
        self.done.add(line.number)
        self.failed += line.failed
        self.tokens += line.tokens

    # --- what is written ----------------------------------------------------------------------------------------

    def begin(self, number: int) -> None:
        """A line is going to be asked, or is done already: in the input's order, its turn is behind those before it."""
        if self._in_order:
            self._turns.append(number)
            self._take_turns()

    @property
    def ahead(self) -> int:
        """Lines that wait for their turn."""
        return len(self._held)

    def add(self, number: int, line: bytes) -> None:
        """line: as of `results.line_of`. Raises RbeeError DISK_FULL."""
        if number in self.done:
            return
        if not self._in_order or (self._turns and self._turns[0] == number):
            self._write(self._out, line, self.path)
        else:
            at = os.fstat(self._ahead).st_size
            self._write(self._ahead, line, self._ahead_path)
            self._held[number] = at, len(line)
        written = known(line)
        assert written is not None
        self._note(written)
        self._take_turns()

    def _take_turns(self) -> None:
        while self._turns and self._turns[0] in self.done:
            number = self._turns.popleft()
            if number in self._held:
                self._release(number)
        if not self._held and os.fstat(self._ahead).st_size > 2**22:
            self._empty_ahead()

    def _release(self, number: int) -> None:
        at, size = self._held[number]
        self._write(self._out, _read(self._ahead, at, size), self.path)
        del self._held[number]

    def _empty_ahead(self) -> None:
        """The output has all of it, once it is on the disk."""
        if os.fstat(self._ahead).st_size:
            os.fsync(self._out)
            os.ftruncate(self._ahead, 0)

    def _write(self, file: int, line: bytes, path: Path) -> None:
        self._append(file, line, path)
        self._dirty.add(file)

    def _append(self, file: int, line: bytes, path: Path) -> None:
        before = os.fstat(file).st_size
        try:
            if (count := os.write(file, line)) == len(line):
                return
            rest = line[count:]  # a full disk takes what it has room for; the next try says so
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(file, before)
            raise _cannot_write(path, error) from error

    async def keep_synced(self) -> None:
        """Until it is canceled. Raises as `sync`."""
        while True:
            await asyncio.sleep(SYNC_S)
            if dirty := self._take_dirty():
                await asyncio.to_thread(self._sync, dirty)

    def sync(self) -> None:
        """Put what was written on the disk. Raises RbeeError DISK_FULL."""
        self._sync(self._take_dirty())

    def _take_dirty(self) -> set[int]:
        dirty, self._dirty = self._dirty, set()
        return dirty

    def _sync(self, files: set[int]) -> None:
        for file in files:
            try:
                os.fsync(file)
            except OSError as error:
                raise _cannot_write(self.path, error) from error

    # --- files --------------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> int:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise UsageError(f"{path} is no regular file", hint="a run that was stopped goes on by what its output has")
        return file

    def _lock(self) -> None:
        try:
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            raise RbeeError(
                ErrorCode.IN_USE, f"another `rbee batch` writes {self.path}", hint="wait for it, or take another --out"
            ) from error

    def _close(self) -> None:
        for file in (self._ahead, self._out):
            if file >= 0:
                os.close(file)
        self._ahead = self._out = -1


def _read(file: int, at: int, size: int) -> bytes:
    return os.pread(file, size, at)


def _may_be_ours(reader: IO[bytes]) -> bool:
    """By its first byte, so that no large file of something else is read."""
    first = os.pread(reader.fileno(), 1, 0)
    return first in (b"", b"{") or (first == b"\0" and os.fstat(reader.fileno()).st_size <= _MOST_ZEROS)


def _cannot_write(path: Path, error: OSError) -> RbeeError:
    return RbeeError(
        ErrorCode.DISK_FULL,
        f"cannot write {path}: {error.strerror}",
        hint="nothing is lost: make room, and give the same command again to go on",
    )


def _foreign(path: Path) -> UsageError:
    return UsageError(
        f"{path} has lines that `rbee batch` did not write",
        hint="take another --out, or move that file away",
    )


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
