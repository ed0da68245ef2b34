"""Systems without /proc, such as macOS: what psutil tells, and signals by pid after a look at the start time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import psutil

from rbee_remote.system.common import SharedSystem, paths_below
from rbee_remote.system.identity import start_ticks
from rbee_remote.system.interface import Process

_STATES = {psutil.STATUS_STOPPED: "T", psutil.STATUS_ZOMBIE: "Z", psutil.STATUS_DEAD: "X"}


class PsutilSystem(SharedSystem):
    def processes(self) -> Sequence[Process]:
        found = (self.find(pid) for pid in psutil.pids() if pid != os.getpid())
        return [process for process in found if process is not None]

    def find(self, pid: int) -> Process | None:
        try:
            process = psutil.Process(pid)
            ticks = start_ticks(pid)
            with process.oneshot():
                state = _STATES.get(process.status(), "S")
                argv = () if state == "Z" else tuple(process.cmdline())
                uid, parent = process.uids().effective, process.ppid()
                age, rss = self.clock() - process.create_time(), process.memory_info().rss
            group, session = os.getpgid(pid), os.getsid(pid)
        except (psutil.Error, ProcessLookupError, PermissionError):
            return None
        return None if ticks is None else Process(pid, ticks, uid, parent, group, session, state, age, rss, argv)

    def is_contained(self, pid: int) -> bool:  # noqa: ARG002 - System's; there containers are machines of their own
        return False

    def signal(self, process: Process, number: int) -> bool:
        now = self.find(process.pid)
        if now is None or now.name != process.name or now.uid != process.uid:
            return False
        try:
            os.kill(process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def mentions(self, roots: Sequence[str]) -> Sequence[tuple[int, str]]:
        found = []
        for pid in psutil.pids():
            for text in _texts(pid) if pid != os.getpid() else ():
                found += [(pid, path) for path in paths_below(text, roots)]
        return found


def _texts(pid: int) -> Iterator[str]:
    try:
        process = psutil.Process(pid)
        yield from process.cmdline()
        yield process.exe()
        yield process.cwd()
        for file in process.open_files():
            yield file.path
    except (psutil.Error, OSError):
        return
