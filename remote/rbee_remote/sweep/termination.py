"""Ending processes: asked, SIGTERM, SIGKILL; each with patience, and with everything that belongs to the process.

Rules
- Nothing that a keeper says is believed: before each step the process is looked at again, and is left alone unless it
  is the one that was surveyed (boot, pid, start, user, command line) and what speaks for its end still holds.
- Each signal goes to one identified process, never to a number of a group: what left the group is reached as well, and
  a number that is used again reaches nobody.
- Ended means that the process and all that belonged to it are gone, or zombies, which hold no memory; and that no GPU
  lists one of them.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rbee_remote.protocol import ProcessSeen, StopRequest, TidyRequest, TidyResult, encode, keeper_socket
from rbee_remote.sweep import processes
from rbee_remote.sweep.processes import Ours
from rbee_remote.sweep.removal import remove_dead_socket
from rbee_remote.system.command import read_command
from rbee_remote.system.interface import Process, System
from rbee_remote.system.process_tree import ProcessTree, grow

#: A look at all processes takes a few hundredths of a second: often at first, then less so.
_POLL_S, _LONGEST_POLL_S = 0.02, 0.5
#: A command that starts a hive has the hive's command line, and runs for that long at most.
HIVE_START_S = 60.0
#: Drivers free a GPU's memory when the process is gone; this is for those that take a while.
_GPU_PATIENCE_S = 5.0


@dataclass(slots=True)
class _Ending:
    """One process on its way out. tree: all that belongs to it, itself too, as last seen. pids: whoever was in it.
    answers: it listens at its socket itself. why: it is left alone, for that reason."""

    seen: ProcessSeen
    tree: ProcessTree = field(default_factory=dict)
    pids: set[int] = field(default_factory=set)
    answers: bool = False
    why: str = ""

    @property
    def name(self) -> tuple[int, int]:
        return self.seen.pid, self.seen.start_ticks

    @property
    def running(self) -> list[Process]:
        return [process for process in self.tree.values() if process.runs]

    def spare(self, why: str) -> None:
        """Leave it alone from here on, whatever was begun."""
        self.why = why
        self.tree.clear()


def end_processes(system: System, request: TidyRequest) -> list[TidyResult]:
    """One result for each process of the request, in its order. Hives go first: what they own ends with them, or is an
    orphan then."""
    results: dict[ProcessSeen, TidyResult] = {}
    hives = [_Ending(seen) for seen in request.processes if seen.command == "hive"]
    others = [_Ending(seen) for seen in request.processes if seen.command != "hive"]
    for batch in (hives, others):
        _escalate(system, batch, request)
        held = _wait_for_gpus(system, batch)
        for ending in batch:
            results[ending.seen] = result = _result(ending, held)
            if result.done and ending.seen.command == "worker":
                socket = processes.worker_socket(request.run_dir, ending.seen.instance)
                remove_dead_socket(socket)
                remove_dead_socket(keeper_socket(socket))
    return [results[seen] for seen in request.processes]


def _escalate(system: System, batch: Sequence[_Ending], request: TidyRequest) -> None:
    """Ask, SIGTERM, SIGKILL, for all at once; after each step some patience."""
    for step in (_ask, _terminate, _kill):
        _look_again(system, [ending for ending in batch if not ending.why], request, first=step is _ask)
        _gather(system, batch)
        waiting = [ending for ending in batch if ending.running and step(system, ending, request)]
        if waiting:
            _wait(system, waiting, request.patience_s, kill=step is _kill)


def _look_again(system: System, batch: Sequence[_Ending], request: TidyRequest, *, first: bool) -> None:
    """Take up each process that is still to be ended, and spare the others. Later than `first`, one may have gone
    while some of its tree is still there: that goes on."""
    if not batch:
        return
    there = processes.find_ours(system, system.processes(), request.home, request.run_dir)
    by_name = {ours.process.name: ours for ours in there}
    found: list[tuple[_Ending, Ours]] = []
    for ending in batch:
        ours = _find_again(system, ending.seen, by_name)
        if isinstance(ours, Ours):
            found.append((ending, ours))
        elif first:
            ending.spare(ours)
    asked = {ours.process.name: ours for _, ours in found}  # one may have been seen, and be named, twice
    now = {(seen.pid, seen.start_ticks): seen for seen in processes.see(system, list(asked.values()))}
    for ending, ours in found:
        if why := _reason_to_spare(ours, now[ending.name]):
            ending.spare(why)
        else:
            ending.tree[ending.name] = ours.process
            ending.answers = bool(now[ending.name].answers)


def _find_again(system: System, seen: ProcessSeen, there: Mapping[tuple[int, int], Ours]) -> Ours | str:
    """The process that was surveyed, or why it is not there."""
    process = system.find(seen.pid)
    if seen.boot_id != system.boot_id():
        return "it is from before a restart of the machine, and gone"
    if process is None or not process.runs:
        return "it has ended by itself"
    if process.start_ticks != seen.start_ticks:
        return f"pid {seen.pid} is another process now"
    ours = there.get(process.name)
    if ours is None:
        return "it is not a process of rbee for this home and user"
    if (ours.command.command, ours.command.instance, ours.command.owner) != (seen.command, seen.instance, seen.owner):
        return "its command line is not the one that was seen"
    return ours


def _reason_to_spare(ours: Ours, now: ProcessSeen) -> str:
    """What speaks against ending it; "" where all evidence is there."""
    if now.command == "hive":
        if now.answers:
            return "it answers: ask the hive itself to stop"
        return "it may be a hive that is just starting" if ours.process.age_s < HIVE_START_S else ""
    if now.owner_lives:
        return "its hive runs, and looks after it"
    if now.owner_lives is None:
        return "it is not known whether its hive still runs"
    return "it has an open request" if now.busy else ""


# --- the steps ------------------------------------------------------------------------------------------------------


def _ask(system: System, ending: _Ending, request: TidyRequest) -> bool:
    """Whether there was somebody to ask: only workers are, because a hive that answers is spared."""
    root = ending.tree.get(ending.name)
    command = read_command(root.argv) if root else None
    if command is None or not ending.answers:  # at its path may listen another, who must not be asked
        return False
    patience = min(request.patience_s, processes.ANSWER_S)
    body = encode(StopRequest(drain=True, patience_s=request.patience_s))
    socket = processes.socket_of(command, request.run_dir)
    system.tell(socket, "/v1/admin/shutdown", body, patience)
    return True


def _terminate(system: System, ending: _Ending, request: TidyRequest) -> bool:  # noqa: ARG001 - a step, as the others
    for process in ending.running:
        system.signal(process, signal.SIGTERM)
        if process.state == "T":
            system.signal(process, signal.SIGCONT)  # one that is stopped would get the other only then
    return True


def _kill(system: System, ending: _Ending, request: TidyRequest) -> bool:  # noqa: ARG001 - a step, as the others
    for process in ending.running:
        system.signal(process, signal.SIGKILL)
    return True


def _wait(system: System, endings: Sequence[_Ending], patience_s: float, *, kill: bool) -> None:
    """Returns when all of them are gone, or patience is over. kill: what a dying one has just started goes as well."""
    deadline, pause = system.monotonic() + patience_s, _POLL_S
    while True:
        _gather(system, endings)
        left = [ending for ending in endings if ending.running]
        if not left or system.monotonic() >= deadline:
            return
        for ending in left if kill else ():
            for process in ending.running:
                system.signal(process, signal.SIGKILL)
        system.sleep(min(pause, max(deadline - system.monotonic(), 0.0)))
        pause = min(2 * pause, _LONGEST_POLL_S)


# --- what belongs to a process --------------------------------------------------------------------------------------


def _gather(system: System, endings: Iterable[_Ending]) -> None:
    """Bring each tree up to date: who of it still is there, and who has come."""
    now = {process.name: process for process in system.processes()}
    roots = {ending.name for ending in endings}
    for ending in endings:
        known = {name: now[name] for name in ending.tree if name in now}
        ending.tree = grow(known, list(now.values()), led=ending.pids, spare=roots - {ending.name})
        ending.pids |= {process.pid for process in ending.tree.values()}


# --- the result -----------------------------------------------------------------------------------------------------


def _wait_for_gpus(system: System, endings: Sequence[_Ending]) -> frozenset[int]:
    """Those of the ended processes that a GPU still lists when patience is over."""
    pids = frozenset(pid for ending in endings if not ending.why for pid in ending.pids)
    deadline = system.monotonic() + _GPU_PATIENCE_S
    while pids:
        held = system.gpu_pids() & pids
        if not held or system.monotonic() >= deadline:
            return held
        system.sleep(_POLL_S)
    return frozenset()


def _result(ending: _Ending, held: frozenset[int]) -> TidyResult:
    what = f"pid {ending.seen.pid}"
    if ending.why:
        return TidyResult(what, done=False, why=ending.why)
    if left := [process.pid for process in ending.running]:
        stuck = "it is still there after SIGKILL: the kernel waits for something, such as a disk or a driver"
        return TidyResult(what, done=False, why=f"{stuck} (pid {', '.join(map(str, left))})")
    if ending.pids & held:
        return TidyResult(what, done=False, why="it has ended, but the GPU's driver still holds memory for it")
    return TidyResult(what, done=True)
