"""The values of `rbee gc`: what it decides from, what it decides, and the sentence that explains each decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from rbee.base.durations import format_duration
from rbee_remote.protocol import ErrorCode, HiveInfo, WorkerInfo
from rbee_remote.protocol.sweep import FileSeen, ProcessSeen, Survey

#: Seconds for a hive to answer. It takes milliseconds; one that takes longer hangs, or is left to the next time.
HIVE_PATIENCE_S = 5.0

#: In place of a node's name, for what lies in the keeper's own home; no node can be called so.
HERE = ""
#: How a hive or worker says that it is in use: it refuses to end, or even the connection for asking is not free.
REFUSALS = frozenset({ErrorCode.IN_USE, ErrorCode.ALL_SLOTS_BUSY})


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """What a node showed of rbee at one moment. hive: the one that answers, None for none; workers: as it lists them.

    The hive was asked before the survey was made: what a hive starts later is in the survey alone, with a live owner.
    """

    survey: Survey
    hive: HiveInfo | None = None
    workers: tuple[WorkerInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """keeper_id: whose leases are our own. older_than_s: seconds of `--older-than`, None without.

    in_use: absolute paths on the node that this keeper starts things from; they stay, however old they are.
    """

    keeper_id: str
    older_than_s: float | None = None
    in_use: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StopWorker:
    """Have the hive stop a worker, if by then it still is idle for `only_idle_s` and no other keeper holds it."""

    node: str
    why: str
    worker_id: str
    model: str
    only_idle_s: float

    @property
    def what(self) -> str:
        return f"worker {self.worker_id} ({self.model})"


@dataclass(frozen=True, slots=True)
class DropRow:
    """Forget a worker that the registry has a row of."""

    node: str
    why: str
    worker_id: str

    @property
    def what(self) -> str:
        return f"the registry's row of worker {self.worker_id}"


@dataclass(frozen=True, slots=True)
class EndProcess:
    """End a process of rbee's on a node, if it still is the one that was seen."""

    node: str
    why: str
    process: ProcessSeen

    @property
    def what(self) -> str:
        return describe(self.process)


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file or folder that rbee made, if it still is the one that was seen and nothing uses it."""

    node: str
    why: str
    file: FileSeen

    @property
    def what(self) -> str:
        return f"{self.file.kind} {self.file.path}"


Action = StopWorker | DropRow | EndProcess | RemoveFile


@dataclass(frozen=True, slots=True)
class Kept:
    """What was looked at and is left alone. why: a clause."""

    node: str
    what: str
    why: str


Verdict = Action | Kept
A = TypeVar("A", StopWorker, DropRow, EndProcess, RemoveFile)


@dataclass(frozen=True, slots=True)
class Plan:
    """actions: in the order in which they are to be done."""

    actions: tuple[Action, ...] = ()
    kept: tuple[Kept, ...] = ()


def sorted_out(verdicts: list[Verdict]) -> Plan:
    """The verdicts as a plan, in their order."""
    kept = tuple(verdict for verdict in verdicts if isinstance(verdict, Kept))
    return Plan(tuple(verdict for verdict in verdicts if not isinstance(verdict, Kept)), kept)


def describe(process: ProcessSeen) -> str:
    """A process as a user knows it."""
    name = f" {process.instance}" if process.instance else ""
    return f"{process.command}{name} (pid {process.pid})"


def span(seconds: float) -> str:
    """A length of time in whole seconds, minutes from an hour on: "45s", "2h5m"."""
    whole = max(int(seconds), 0)
    return format_duration(float(whole if whole < 3600 else whole - whole % 60))
