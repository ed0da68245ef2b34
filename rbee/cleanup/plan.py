"""What `rbee gc` does about a node: values in, actions out. Pure.

Rules
- Whatever is ended or forgotten has positive evidence against it. What does not answer is not dead: it is explained.
- A worker that answers a request is never touched, nor one that another keeper's lease holds.
- A hive is never ended; its workers are its own, and are stopped through it alone.
- Processes are told apart by boot id, pid, start time and instance; a row that names a pid is a hint and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePosixPath

from rbee.cleanup.actions import (
    Action,
    DropRow,
    EndProcess,
    Kept,
    NodeSeen,
    Plan,
    Policy,
    StopWorker,
    Verdict,
    describe,
    sorted_out,
    span,
)
from rbee.cleanup.leftovers import judge_file
from rbee.registry import WorkerRow
from rbee_remote.protocol import Lease, WorkerInfo, WorkerState
from rbee_remote.protocol.sweep import ProcessSeen, Survey

#: A worker ends by itself when its keep-alive is over; one that is this much late will not.
KEEP_ALIVE_GRACE_S = 30.0
#: Whoever loses its hive ends by itself within moments, once nothing is asked of it.
ORPHAN_GRACE_S = 60.0
#: A young process may not have come so far as to answer.
SILENT_GRACE_S = 10.0
#: A row is a hint for a minute; after an hour nobody goes by it.
UNLISTED_GRACE_S = 3600.0


def plan(node: str, seen: NodeSeen, rows: Sequence[WorkerRow], policy: Policy) -> list[Action]:
    """What to do about `node`. rows: what the registry had of this node before the node was asked."""
    return list(judge(node, seen, rows, policy).actions)


def judge(node: str, seen: NodeSeen, rows: Sequence[WorkerRow], policy: Policy) -> Plan:
    """As `plan`, and with what is left alone, and why."""
    verdicts: list[Verdict | None] = [_judge_worker(node, worker, policy) for worker in seen.workers]
    verdicts += _judge_rows(node, seen, rows)
    verdicts += [_judge_process(node, process, seen) for process in seen.survey.processes]
    verdicts += [judge_file(node, file, seen, policy) for file in seen.survey.files]
    return sorted_out([verdict for verdict in verdicts if verdict is not None])


# --- workers that a hive answers for -----------------------------------------------------------------------------


def _judge_worker(node: str, worker: WorkerInfo, policy: Policy) -> Verdict:
    def keep(why: str) -> Kept:
        return Kept(node, f"worker {worker.id}", why)

    def stop(only_idle_s: float, why: str) -> StopWorker:
        return StopWorker(node, why, worker.id, worker.model, only_idle_s)

    idle = worker.idle_s
    if worker.state is not WorkerState.IDLE or idle is None:
        return keep(f"it is {worker.state.value}")
    running = [lease for lease in worker.leases if _is_running(lease)]
    foreign = next((lease for lease in running if lease.keeper != policy.keeper_id), None)
    if foreign:
        return keep(f"{_holder(foreign)} holds it{_for_how_long(foreign)}")
    latest = worker.keep_alive_s + KEEP_ALIVE_GRACE_S
    if not running and worker.keep_alive_s >= 0 and idle >= latest:
        return stop(latest, f"idle for {span(idle)}, and its keep-alive is {span(worker.keep_alive_s)}")
    if policy.older_than_s is not None and idle >= policy.older_than_s:
        return stop(policy.older_than_s, f"idle for {span(idle)}")
    return keep(f"idle for {span(idle)}, which is less than it may be")


def _is_running(lease: Lease) -> bool:
    return lease.left_s is None or lease.left_s > 0


def _holder(lease: Lease) -> str:
    return f"keeper {lease.keeper}" if lease.keeper else "a client without a name"


def _for_how_long(lease: Lease) -> str:
    return "" if lease.left_s is None else f" for another {span(lease.left_s)}"


# --- rows of the registry ----------------------------------------------------------------------------------------


def _judge_rows(node: str, seen: NodeSeen, rows: Sequence[WorkerRow]) -> list[Verdict | None]:
    listed = {worker.id for worker in seen.workers}
    alive = _Alive(seen.survey)
    return [_judge_row(node, row, seen, alive) for row in rows if row.worker_id not in listed]


def _judge_row(node: str, row: WorkerRow, seen: NodeSeen, alive: _Alive) -> Verdict:
    survey = seen.survey
    run_dir = PurePosixPath(row.socket).parent
    if row.boot_id and survey.boot_id and row.boot_id != survey.boot_id:
        return DropRow(node, "the machine has been restarted since, or is another one", row.worker_id)
    if seen.hive and str(run_dir) == survey.run_dir:
        return DropRow(node, "the hive does not know it", row.worker_id)
    if run_dir.name != PurePosixPath(survey.run_dir).name:  # the name is a digest of the home
        return Kept(node, f"the registry's row of worker {row.worker_id}", "it belongs to another home on that machine")
    if not alive.has(row):
        return DropRow(node, "no such process runs there", row.worker_id)
    return Kept(
        node, f"the registry's row of worker {row.worker_id}", "its process runs, though no hive answers for it"
    )


def judge_unlisted(rows: Sequence[WorkerRow], now: float) -> Plan:
    """What to do about rows of nodes that are not in the inventory. now: Unix seconds.

    Another inventory may be in use beside this one, so that a row has to be of no use to anybody: long unseen.
    """
    return sorted_out([_judge_unlisted(row, now) for row in rows])


def _judge_unlisted(row: WorkerRow, now: float) -> Verdict:
    unseen = now - datetime.fromisoformat(row.last_seen_at).timestamp()
    if unseen < UNLISTED_GRACE_S:
        return Kept(
            row.node, f"the registry's row of worker {row.worker_id}", f"seen {span(unseen)} ago, in another inventory"
        )
    return DropRow(row.node, "the inventory has no such node", row.worker_id)


class _Alive:
    """The processes of a survey that run, looked up by what a row says of its own. Zombies have ended."""

    def __init__(self, survey: Survey) -> None:
        running = [process for process in survey.processes if process.state != "Z"]
        self._ids = {process.instance for process in running if process.instance}
        self._pids = {(process.pid, process.start_ticks) for process in running}

    def has(self, row: WorkerRow) -> bool:
        return row.worker_id in self._ids or (row.pid, row.start_ticks) in self._pids


# --- processes ---------------------------------------------------------------------------------------------------


def _judge_process(node: str, process: ProcessSeen, seen: NodeSeen) -> Verdict | None:
    """None for one that is where it belongs."""
    if process.command == "hive":
        return _judge_hive(node, process, seen)
    if process.owner_lives or _is_listed(process, seen):
        return None
    why_not = _why_left_alone(process, seen.survey)
    if why_not:
        return Kept(node, describe(process), why_not)
    return EndProcess(
        node, f"the hive that started it (pid {_owner_pid(process)}) is gone, and {_state(process)}", process
    )


def _judge_hive(node: str, process: ProcessSeen, seen: NodeSeen) -> Kept | None:
    hive = seen.hive
    if hive and (hive.pid, hive.start_ticks) == (process.pid, process.start_ticks):
        return None
    if process.answers:
        return Kept(node, describe(process), "it answers on its machine, though not from here")
    return Kept(node, describe(process), "it does not answer, which does not prove that it is dead")


def _is_listed(process: ProcessSeen, seen: NodeSeen) -> bool:
    """Whether the hive that answers says that this very process is a worker of its own."""
    names = ((worker.id, worker.pid, worker.start_ticks) for worker in seen.workers)
    return (process.instance, process.pid, process.start_ticks) in names


def _why_left_alone(process: ProcessSeen, survey: Survey) -> str:
    """A clause, "" for an orphan that has to be ended."""
    if process.boot_id != survey.boot_id:
        return "it was started before the machine's last restart"
    if process.state == "Z":
        return "it has ended, but its parent has not noticed that yet"
    if process.owner_lives is None:
        return "it does not say which hive started it, so it may be in use"
    if process.busy:
        return "the hive that started it is gone, but it is answering a request"
    grace = SILENT_GRACE_S if process.answers is False else ORPHAN_GRACE_S
    if process.age_s < grace:
        return f"the hive that started it is gone, but it is {span(process.age_s)} old and may end by itself"
    return ""


def _owner_pid(process: ProcessSeen) -> str:
    return process.owner.partition(".")[0]


def _state(process: ProcessSeen) -> str:
    if process.answers is None:
        return "nobody waits for it any more"
    if process.answers:
        return "nothing is asked of it"
    return "it does not answer" + (" (it is stopped)" if process.state == "T" else "")
