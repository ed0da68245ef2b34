"""What belongs to a process: its descendants, those of its session too whose own parents are gone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from rbee_remote.system.command import read_command
from rbee_remote.system.interface import Process

#: Processes by pid and start time.
ProcessTree = dict[tuple[int, int], Process]


def grow(
    known: ProcessTree, everybody: Sequence[Process], *, led: AbstractSet[int], spare: AbstractSet[tuple[int, int]]
) -> ProcessTree:
    """`known` and all that belongs to it: descendants, and who is in a session or group that one of it leads or led.

    led: pids of those that are gone. Their number still means the same session as long as one whom we know is in it.
    A worker is nobody's child in this sense: it has a life of its own, and so have those of `spare`. But one with the
    command line of a member is that member's fork.
    """
    tree = dict(known)
    while True:
        pids = {process.pid for process in tree.values()}
        sessions = {process.session for process in tree.values()} & (pids | led)
        groups = {process.group for process in tree.values()} & (pids | led)
        words = {process.argv for process in tree.values()}
        found = {
            process.name: process
            for process in everybody
            if (process.parent in pids or process.session in sessions or process.group in groups)
            and not (process.name in tree or process.name in spare)
            and (process.argv in words or not _is_worker(process))
        }
        if not found:
            return tree
        tree |= found


def _is_worker(process: Process) -> bool:
    command = read_command(process.argv)
    return command is not None and command.command == "worker"
