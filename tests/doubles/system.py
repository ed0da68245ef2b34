"""A machine that a test writes: a table of processes that come, hang, end, and leave their pids to others.

    node = ScriptedSystem()
    hive = node.start("hive")                              # also: uid=, pid=, parent=, session=, argv=, manners=
    worker = node.start("worker", instance="0" * 16, owner=hive)
    node.set_busy(worker, True)                            # a request is open; set_busy(worker, False) ends it
    node.end(hive)                                         # SIGKILL from nowhere; the worker is an orphan now
    seen = survey(node, node.home, node.run_dir)           # the real survey …
    report = tidy(node, TidyRequest(node.home, node.run_dir, seen.processes))       # … and the real tidy

Then `node.runs(worker)` says whether it is there, `node.signals` who got which signal, `node.wronged` which processes
were signalled while a request was open in them or while they were none of rbee's: a test wants that to be empty.
`freeze` is SIGSTOP, `reboot` ends everything and makes another boot, `jump` moves the wall clock, and time passes in
`sleep` alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbee_remote.sweep.processes import socket_of
from rbee_remote.system.command import read_command
from rbee_remote.system.common import paths_below
from rbee_remote.system.identity import owner_tag
from rbee_remote.system.interface import Process

#: Steps of the escalation that a process goes at: asked, SIGTERM, SIGKILL, or never (its kernel waits for a disk).
MANNERS = ("asked", "term", "kill", "never")

_TICKS_PER_S = 100


@dataclass(slots=True)
class _Row:
    """of_rbee: whether it is one of its commands, or was started by one."""

    process: Process
    manners: str
    born: float
    of_rbee: bool
    busy: bool = False
    ending: bool = False


class ScriptedSystem:
    """A `System`. Time passes only when somebody sleeps."""

    def __init__(self, *, home: str = "/scripted/home", run_dir: str = "/scripted/run", uid: int = 1000) -> None:
        self.home, self.run_dir = home, run_dir
        self.signals: list[tuple[Process, int]] = []
        self.wronged: list[Process] = []
        self.gpu: set[int] = set()
        self.contained: set[int] = set()
        self._uid = uid
        self._rows: dict[int, _Row] = {}
        self._pids = itertools.count(100)
        self._boots = itertools.count(1)
        self._boot = f"boot-{next(self._boots)}"
        self._now = self._booted = 1000.0
        self._clock_ahead = 1.7e9
        self._ticks = 0

    # --- what happens on the machine ------------------------------------------------------------------------------

    def start(
        self,
        command: str,
        *,
        instance: str = "",
        owner: Process | None = None,
        uid: int | None = None,
        pid: int | None = None,
        parent: Process | None = None,
        session: int | None = None,
        argv: Sequence[str] | None = None,
        manners: str = "asked",
    ) -> Process:
        """A process that runs from now on; of rbee's, unless `argv` says something else. pid: one that is free.

        session: a pid, its own where left out. parent: the owner where left out, else init.
        """
        number = pid if pid is not None else next(pid for pid in self._pids if pid not in self._rows)
        assert number not in self._rows, f"pid {number} is taken"
        assert manners in MANNERS
        above = parent or owner
        leader = number if session is None else session
        process = Process(
            pid=number,
            start_ticks=self._next_ticks(),
            uid=self._uid if uid is None else uid,
            parent=above.pid if above else 1,
            group=leader,
            session=leader,
            rss=10**8,
            argv=tuple(self._argv(command, instance, owner) if argv is None else argv),
        )
        elders = [row for pid in (process.parent, leader) if (row := self._rows.get(pid)) and row.of_rbee]
        of_rbee = read_command(process.argv) is not None or bool(elders)
        self._rows[number] = _Row(process, manners, self._now, of_rbee)
        return process

    def end(self, process: Process) -> None:
        """It is gone, and its children are init's. Does nothing when it is gone already."""
        row = self._rows.get(process.pid)
        if row is None or row.process.name != process.name:
            return
        del self._rows[process.pid]
        for row in self._rows.values():
            if row.process.parent == process.pid:
                row.process = dataclasses.replace(row.process, parent=1)

    def zombify(self, process: Process) -> None:
        """It has ended, and its parent does not care."""
        self._rows[process.pid].process = dataclasses.replace(process, state="Z", argv=(), rss=0)

    def freeze(self, process: Process) -> None:
        self._rows[process.pid].process = dataclasses.replace(process, state="T")

    def set_busy(self, process: Process, busy: bool) -> None:
        """A request begins or ends; a worker that was asked to end does so after its last one."""
        row = self._rows[process.pid]
        row.busy = busy
        if row.ending and not busy:
            self.end(process)

    def reboot(self) -> None:
        """Everything ends; pids and start times begin anew, under another boot id."""
        self._rows.clear()
        self._boot = f"boot-{next(self._boots)}"
        self._booted, self._ticks = self._now, 0
        self._pids = itertools.count(100)

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self._clock_ahead += seconds

    def runs(self, process: Process) -> bool:
        """Whether this very process is there, and no zombie."""
        row = self._rows.get(process.pid)
        return row is not None and row.process.name == process.name and row.process.runs

    # --- System -----------------------------------------------------------------------------------------------------

    def boot_id(self) -> str:
        return self._boot

    def host(self) -> str:
        return "scripted"

    def uid(self) -> int:
        return self._uid

    def clock(self) -> float:
        return self._now + self._clock_ahead

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds

    def processes(self) -> Sequence[Process]:
        return [self._aged(row) for row in self._rows.values()]

    def find(self, pid: int) -> Process | None:
        row = self._rows.get(pid)
        return self._aged(row) if row else None

    def is_contained(self, pid: int) -> bool:
        return pid in self.contained

    def signal(self, process: Process, number: int) -> bool:
        row = self._rows.get(process.pid)
        if row is None or row.process.name != process.name or row.process.uid != self._uid:
            return False
        self.signals.append((row.process, number))
        if row.busy or not row.of_rbee:
            self.wronged.append(row.process)
        if number == signal.SIGCONT and row.process.state == "T":
            row.process = dataclasses.replace(row.process, state="S")
            number = signal.SIGTERM if row.ending else number
        if number == signal.SIGTERM and row.manners in ("asked", "term"):
            row.ending = True
            if row.process.state != "T":
                self.end(row.process)
        elif number == signal.SIGKILL and row.manners != "never":
            self.end(row.process)
        return True

    def ask(self, sockets: Sequence[str], timeout_s: float) -> Mapping[str, dict[str, Any] | None]:
        answers = {socket: self._health(self._listener(socket)) for socket in sockets}
        if None in answers.values():
            self._now += timeout_s
        return answers

    def tell(self, socket: str, target: str, body: dict[str, Any], timeout_s: float) -> None:
        row = self._listener(socket)
        if row is None or row.process.state == "T" or row.manners != "asked":
            return
        row.ending = True
        if not (row.busy and body.get("drain")):
            self.end(row.process)

    def mentions(self, roots: Sequence[str]) -> Sequence[tuple[int, str]]:
        words = [(row.process.pid, word) for row in self._rows.values() for word in row.process.argv]
        return [(pid, path) for pid, word in words for path in paths_below(word, roots)]

    def gpu_pids(self) -> frozenset[int]:
        return frozenset(self.gpu & set(self._rows))

    # --- inside ---------------------------------------------------------------------------------------------------

    def _argv(self, command: str, instance: str, owner: Process | None) -> list[str]:
        words = [f"{self.home}/runtimes/r1/bin/python", "-I", f"{self.home}/payloads/{'ab' * 8}.zip", command]
        if command == "hive":
            return [*words, "--home", self.home, "--run-dir", self.run_dir, "--payload", "ab" * 8, "--detach"]
        words += [f"--id={instance}"] if instance else []
        words += [f"--owner={owner_tag(owner.pid, owner.start_ticks)}"] if owner else []
        return [*words, f"--home={self.home}", f"--run-dir={self.run_dir}"] if command == "worker" else words

    def _next_ticks(self) -> int:
        self._ticks = max(self._ticks + 1, round((self._now - self._booted) * _TICKS_PER_S))
        return self._ticks

    def _aged(self, row: _Row) -> Process:
        return dataclasses.replace(row.process, age_s=self._now - row.born)

    def _listener(self, socket: str) -> _Row | None:
        for row in self._rows.values():
            command = read_command(row.process.argv)
            if command is not None and socket_of(command, self.run_dir) == socket:
                return row
        return None

    def _health(self, row: _Row | None) -> dict[str, Any] | None:
        if row is None or row.process.state == "T":
            return None
        command = read_command(row.process.argv)
        assert command is not None
        if command.command == "hive":
            return {"pid": row.process.pid, "start_ticks": row.process.start_ticks}
        free = 0 if row.busy else 1
        return {"id": command.instance, "state": "busy" if row.busy else "idle", "slots": 1, "slots_free": free}
