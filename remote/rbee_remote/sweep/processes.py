"""Which processes are rbee's, of this user and this home, and how each of them stands. Decides; asks only a `System`.

Rules
- A process is ours by its command line alone, as `command.payload_command` makes it, with a payload or --home of this
  very home. What merely names one of our files is not, nor is what runs in a container: that is another node, where
  the same home is another folder and an owner's pid another process.
- Who started it, its owner, is named by pid and start time. An owner is dead when no process on this boot has both;
  one whose parent has not asked for its end yet (a zombie) is dead too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbee_remote.protocol import HIVE_SOCKET, ProcessSeen
from rbee_remote.protocol.sweep import HIVE_COMMANDS
from rbee_remote.system import identity
from rbee_remote.system.command import PayloadCommand, read_command
from rbee_remote.system.interface import Process, System

#: Seconds a socket gets to answer; a worker answers in milliseconds unless its machine is very busy.
ANSWER_S = 4.0

_INSTANCE = re.compile(r"[0-9a-f]{16}")
_MB = 10**6


@dataclass(frozen=True, slots=True)
class Ours:
    """A process of rbee's. socket: where it listens, "" for a command that has none."""

    process: Process
    command: PayloadCommand
    socket: str

    @property
    def label(self) -> str:
        return f"{self.command.command} {self.command.instance or self.process.pid}"


def find_ours(system: System, processes: Sequence[Process], home: str, run_dir: str) -> list[Ours]:
    """Those of `processes` that belong to this home. run_dir: where a worker listens whose command line names none."""
    uid, wanted = system.uid(), os.path.realpath(home)
    read = [(process, read_command(process.argv)) for process in processes if process.uid == uid and process.runs]
    found = {
        process.pid: (process, command)
        for process, command in read
        if command and command.command in HIVE_COMMANDS and not system.is_contained(process.pid)
    }
    hives = {
        owner_name(process): process
        for process, command in found.values()
        if command.command == "hive" and _is_same(command.home, wanted)
    }
    return [
        Ours(process, command, socket_of(command, run_dir))
        for process, command in found.values()
        # Run from a source folder, only its owner says where a helper belongs.
        if (_is_same(command.home, wanted) if command.home else command.owner in hives)
    ]


def see(system: System, ours: Sequence[Ours]) -> list[ProcessSeen]:
    """Each of them as the keeper is told, in the order of their pids; sockets are asked all at once."""
    # One that is stopped cannot answer, and it would take all the patience to find that out.
    sockets = sorted({one.socket for one in ours if one.socket and one.process.state != "T"})
    answers = system.ask(sockets, ANSWER_S)
    return [_seen(system, one, answers) for one in sorted(ours, key=lambda one: one.process.pid)]


def _seen(system: System, one: Ours, answers: Mapping[str, dict[str, Any] | None]) -> ProcessSeen:
    process, command = one.process, one.command
    answer = answers.get(one.socket)
    own = answer if answer and _is_from(answer, one) else None
    return ProcessSeen(
        pid=process.pid,
        start_ticks=process.start_ticks,
        boot_id=system.boot_id(),
        command=command.command,
        payload=command.digest,
        instance=command.instance,
        owner=command.owner,
        owner_lives=owner_lives(system, command.owner),
        state=process.state,
        age_s=round(process.age_s, 1),
        rss_mb=process.rss // _MB,
        answers=own is not None if one.socket else None,
        busy=own is not None and is_busy(own),
    )


def owner_name(process: Process) -> str:
    return identity.owner_tag(process.pid, process.start_ticks)


def owner_lives(system: System, owner: str) -> bool | None:
    """None where there is no owner, or nothing that could name one: then nobody knows."""
    name = identity.read_owner(owner)
    if name is None:
        return None
    process = system.find(name[0])
    return process is not None and process.name == name and process.runs


def is_busy(answer: Mapping[str, Any]) -> bool:
    """Whether a worker that answered so has an open request; a hive's answer has none of this."""
    slots, free, queued = (answer.get(key, 0) for key in ("slots", "slots_free", "queued"))
    return slots != free or bool(queued) or answer.get("state") == "busy"


def _is_from(answer: Mapping[str, Any], one: Ours) -> bool:
    """A socket may have become another's: of two hives only one answers there."""
    if one.command.command == "hive":
        return answer.get("pid") == one.process.pid and answer.get("start_ticks") == one.process.start_ticks
    return answer.get("id") == one.command.instance


def socket_of(command: PayloadCommand, run_dir: str) -> str:
    folder = command.run_dir or run_dir
    if command.command == "hive":
        return f"{folder}/{HIVE_SOCKET}"
    return worker_socket(folder, command.instance) if command.command == "worker" else ""


def worker_socket(run_dir: str, instance: str) -> str:
    """ "" for what is no worker's id."""
    return f"{run_dir}/worker-{instance}.sock" if _INSTANCE.fullmatch(instance) else ""


def _is_same(path: str, real: str) -> bool:
    return bool(path) and os.path.realpath(path) == real
