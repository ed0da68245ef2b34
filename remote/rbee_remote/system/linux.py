"""Linux: everything stands in /proc, and a pidfd makes sure that a signal reaches whom it was meant for."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence

from rbee_remote.system import identity
from rbee_remote.system.common import SharedSystem, paths_below
from rbee_remote.system.interface import Process

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

#: What reading a process's files raises when it ended meanwhile or is somebody else's.
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError, NotADirectoryError)


class LinuxSystem(SharedSystem):
    """Needs /proc; with hidepid other users' processes are not seen, which does no harm."""

    def processes(self) -> Sequence[Process]:
        uptime = _uptime()
        found = (_read(pid, uptime) for pid in _pids())
        return [process for process in found if process is not None]

    def find(self, pid: int) -> Process | None:
        return _read(pid, _uptime()) if pid > 0 else None

    def is_contained(self, pid: int) -> bool:
        try:
            lines = _content(f"/proc/{pid}/status").splitlines()
        except _GONE:
            return False
        # Its pids from our namespace inwards; kernels before 4.1 do not tell.
        return any(len(line.split()) > 2 for line in lines if line.startswith(b"NSpid:"))

    def signal(self, process: Process, number: int) -> bool:
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        except (OSError, AttributeError):  # a kernel before 5.3, a sandbox that forbids it, a libc without it
            return self._signal_by_pid(process, number)
        try:
            # The descriptor is of whoever has the pid now; if that is the one we know, it stays so.
            if not self._is(process):
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # a sandbox's word, or it is not ours: the other way tells
            return self._signal_by_pid(process, number)
        finally:
            os.close(descriptor)
        return True

    def _signal_by_pid(self, process: Process, number: int) -> bool:
        if not self._is(process):
            return False
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def _is(self, process: Process) -> bool:
        now = self.find(process.pid)
        return now is not None and now.name == process.name and now.uid == process.uid

    def mentions(self, roots: Sequence[str]) -> Sequence[tuple[int, str]]:
        found = []
        for pid in _pids():
            for text in _texts(pid):
                found += [(pid, path) for path in paths_below(text, roots)]
        return found


def _pids() -> Iterator[int]:
    own = os.getpid()
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != own)  # noqa: PTH208


def _uptime() -> float:
    # The clock that start times count on: it goes on while the machine sleeps, and never jumps.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read(pid: int, uptime: float) -> Process | None:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116 - a thousand times in a row
        fields = identity.stat_fields(pid)
        argv = _content(f"/proc/{pid}/cmdline")
    except _GONE:
        return None
    if not fields:
        return None
    ticks = int(fields[identity.START_TICKS])
    return Process(
        pid=pid,
        start_ticks=ticks,
        uid=uid,
        parent=int(fields[identity.PARENT]),
        group=int(fields[identity.GROUP]),
        session=int(fields[identity.SESSION]),
        state=fields[identity.STATE],
        age_s=max(uptime - ticks / _TICKS_PER_S, 0.0),
        rss=int(fields[identity.RSS_PAGES]) * _PAGE,
        argv=tuple(os.fsdecode(word) for word in argv.removesuffix(b"\0").split(b"\0")) if argv else (),
    )


def _texts(pid: int) -> Iterator[str]:
    """Whatever of a process can name a path. What belongs to others tells its command line alone."""
    try:
        for word in _content(f"/proc/{pid}/cmdline").split(b"\0"):
            yield os.fsdecode(word)
        for link in ("exe", "cwd"):
            yield os.readlink(f"/proc/{pid}/{link}")  # noqa: PTH115
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                yield os.readlink(f"/proc/{pid}/fd/{name}")  # noqa: PTH115
        for line in _content(f"/proc/{pid}/maps").splitlines():
            if (at := line.find(b"/")) >= 0:
                yield os.fsdecode(line[at:])
    except _GONE:
        return


def _content(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - a thousand times in a row
        return file.read()
