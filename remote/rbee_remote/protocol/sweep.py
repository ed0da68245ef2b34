"""What a keeper asks of a node, hive or no hive: what of rbee is there, and to end or remove some of it.

`survey` prints a `Survey`; `tidy` reads a `TidyRequest` on stdin and prints a `TidyReport`. In between the keeper
decides (`rbee.cleanup.plan`), so `tidy` looks at each thing again and touches only what still is what it was.
"""

from __future__ import annotations

import dataclasses

#: The payload's commands that are a hive, or belong to one: what can be left behind. A pipe ends with its channel, a
#: survey with its answer, and another keeper's bootstrap is nobody's leftover.
HIVE_COMMANDS = ("hive", "worker", "download", "inspect", "digest", "measure", "ggml_gpus", "render")


@dataclasses.dataclass(frozen=True, slots=True)
class ProcessSeen:
    """A process of rbee's, of this user and this home.

    pid, start_ticks and boot_id name it, as `system.identity` has them; instance: a worker's id, "" for other commands.
    command: one of HIVE_COMMANDS. owner: the hive that started it, as `PID.START_TICKS` on this
    boot, "" where its command line names none. owner_lives: whether that very process still runs, None without owner.
    state: a letter of proc(5): T stopped, Z zombie. age_s: since its start. answers: whether its socket answered
    within some seconds, None for a process that has none. busy: of one that answers, whether a request is open.
    """

    pid: int
    start_ticks: int
    boot_id: str
    command: str
    payload: str
    instance: str = ""
    owner: str = ""
    owner_lives: bool | None = None
    state: str = ""
    age_s: float = 0.0
    rss_mb: int = 0
    answers: bool | None = None
    busy: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class FileSeen:
    """A file or folder that rbee put on the node, and that may be of no use any more.

    kind: payload, runtime, staging, wheels, uv, part (an upload), download, model (of no record), log or socket.
    path: absolute. bytes: with all that is in it. idle_s: since it was last used or written to, on the node's clock,
    never negative. user: what uses it at this moment ("worker 3f9a…", "pid 12"), "" where nothing was found that does.
    identity: tells it from what may lie at the same path later.
    """

    kind: str
    path: str
    bytes: int
    idle_s: float
    identity: str
    user: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What of rbee is on a node at one moment. host: its name, for explanations. clock: Unix seconds there."""

    boot_id: str
    host: str
    clock: float
    home: str
    run_dir: str
    processes: tuple[ProcessSeen, ...] = ()
    files: tuple[FileSeen, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class TidyRequest:
    """home and run_dir: as surveyed; nothing outside them is removed. patience_s: of each step of the escalation."""

    home: str
    run_dir: str
    processes: tuple[ProcessSeen, ...] = ()
    files: tuple[FileSeen, ...] = ()
    patience_s: float = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class TidyResult:
    """What became of one item. what: `pid 12` or a path. done: ended or removed. why: of one that was left alone."""

    what: str
    done: bool
    bytes: int = 0
    why: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TidyReport:
    """One result for each process, then one for each file of the request, in their order."""

    results: tuple[TidyResult, ...] = ()
