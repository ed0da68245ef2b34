"""`rbee workers`: what runs where, asked live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from rbee.base.durations import format_duration
from rbee.cli.failed_nodes import error_value, partial_failure, why
from rbee.cli.options import (
    PATIENCE,
    NodeOption,
    NodesArgument,
    NowOption,
    PatienceOption,
    WorkerArgument,
    patience_s,
)
from rbee.cli.shell import Shell, command, group
from rbee.render import Table
from rbee.render.text import clock_time, one_line

if TYPE_CHECKING:
    from rbee.node.session import PerNode
    from rbee.registry import Changes
    from rbee_remote.protocol import WorkerInfo, WorkerStatus

#: Of an id, in tables; every command takes the beginning of one.
SHORT_ID = 8


def register(app: typer.Typer) -> None:
    workers = group(app, "workers", "The processes that hold a model each.")
    command(workers, "list", example="rbee workers list @cuda", over_link=True)(list_)
    command(workers, "show", example="rbee workers show 3f9a")(show)
    command(workers, "stop", example="rbee workers stop 3f9a --node gpu1")(stop)
    command(workers, "sync", example="rbee workers sync gpu1 --json")(sync)
    command(workers, "health", example="rbee workers health gpu1")(health)


def list_(shell: Shell, nodes: NodesArgument = None) -> None:
    """List the workers of all nodes; a node that does not answer is a row."""
    from rbee.fleet import workers

    context = shell.context
    shell.renderer.table(workers_table(shell.run(workers.workers(context, context.inventory.select(nodes)))))


def show(shell: Shell, worker: WorkerArgument, node: NodeOption = None) -> None:
    """Show all that a hive knows of one worker."""
    from rbee.fleet import workers

    context = shell.context
    where, info = shell.run(workers.find_worker(context, context.inventory.select(node), worker))
    if shell.options.json:
        shell.renderer.record({"node": where.name, **worker_data(info)})
    else:
        shell.renderer.record(worker_record(where.name, info))


def stop(
    shell: Shell,
    worker: WorkerArgument,
    node: NodeOption = None,
    now: NowOption = False,
    patience: PatienceOption = PATIENCE,
) -> None:
    """Stop a worker once its requests are finished; its memory is free when this returns."""
    from rbee.fleet import workers

    seconds = patience_s(patience)
    context = shell.context
    where, info = shell.run(workers.find_worker(context, context.inventory.select(node), worker))
    shell.run(workers.stop_worker(context, where, info.id, drain=not now, patience_s=seconds))
    data = {"stopped": info.id, "model": info.model, "node": where.name}
    shell.renderer.done(f"stopped worker {info.id} ({info.model}) on {where.name}", data)


def sync(shell: Shell, nodes: NodesArgument = None) -> None:
    """Update the local table of workers from the hives; a node that does not answer keeps its rows."""
    from rbee.fleet import workers

    context = shell.context
    answers = shell.run(workers.sync(context, context.inventory.select(nodes)))
    shell.renderer.table(sync_table(answers))
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure


def health(shell: Shell, nodes: NodesArgument = None) -> None:
    """Ask each worker itself whether it works."""
    from rbee.fleet import workers

    context = shell.context
    answers = shell.run(workers.worker_health(context, context.inventory.select(nodes)))
    shell.renderer.table(health_table(answers))


def workers_table(answers: Sequence[PerNode[list[WorkerInfo]]]) -> Table:
    """A node that does not answer is a row."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, "-", "-", "unreachable", "-", "-", "-", why(answer.error)))
            data.append({"node": name, **error_value(answer.error)})
        for worker in answer.value or ():
            rows.append((name, *_worker_cells(worker)))
            data.append({"node": name, **worker_data(worker)})
    return Table(("NODE", "ID", "MODEL", "STATE", "DEVICE", "SLOTS", "MEMORY", "NOTE"), rows, data)


def sync_table(answers: Sequence[PerNode[Changes]]) -> Table:
    """What the hives said that the registry did not know: how many workers, in JSON which."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name, changes = answer.node.name, answer.value
        if changes is None:
            rows.append((name, "-", "-", "-", why(answer.error)))
            data.append({"node": name, **error_value(answer.error)})
        else:
            ids = {"added": changes.added, "dropped": changes.dropped, "kept": changes.kept}
            rows.append((name, *(str(len(of)) for of in ids.values()), ""))
            data.append({"node": name, **{key: list(of) for key, of in ids.items()}})
    return Table(("NODE", "ADDED", "DROPPED", "KEPT", "WHY"), rows, data)


def _worker_cells(worker: WorkerInfo) -> tuple[str, ...]:
    state = worker.state.value
    if state == "loading":
        state = f"loading {worker.progress:.0%}"
    idle = f"idle for {clock_time(worker.idle_s)}" if worker.idle_s is not None else ""
    note = ", ".join(filter(None, (idle, _kept(worker))))
    if worker.error:
        note = one_line(str(worker.error.get("message", "")))
    memory = f"{worker.rss_mb} MB" if worker.rss_mb else "-"
    slots = f"{worker.slots_free}/{worker.slots} free"
    return (worker.id[:SHORT_ID], worker.model, state, worker.device, slots, memory, note)


def _kept(worker: WorkerInfo) -> str:
    """For how long its keepers hold it: "" for one that nobody does, or that is at work."""
    if not worker.leases or worker.idle_s is None:
        return ""
    left = [lease.left_s for lease in worker.leases if lease.left_s is not None]
    span = f"for {clock_time(max(left))}" if len(left) == len(worker.leases) else "without end"
    by = f" by {len(worker.leases)} keepers" if len(worker.leases) > 1 else ""
    return f"kept {span}{by}"


def worker_record(node: str, worker: WorkerInfo) -> dict[str, Any]:
    """All that is known of a worker, for people: moments and times as they are read, options one a line."""
    from rbee.registry.rows import iso_time

    data = {"node": node, **worker_data(worker)}
    options = data.pop("options") or {}
    data["created_at"] = iso_time(worker.created_at)
    data["keep_alive"] = format_duration(data.pop("keep_alive_s"))
    data["idle"] = clock_time(data.pop("idle_s")) if worker.idle_s is not None else None
    data["leases"] = [
        f"{lease.keeper or 'others'} {'without end' if lease.left_s is None else 'for ' + clock_time(lease.left_s)}"
        for lease in worker.leases
    ]
    return {**data, **{name: value for name, value in options.items() if name not in data}}


def worker_data(worker: WorkerInfo) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    data = encode(worker)
    for private in ("audit_head", "secret"):  # told to who starts a worker or asks its hive, and shown to nobody
        del data[private]
    return data


def health_table(answers: Sequence[PerNode[list[tuple[WorkerInfo, WorkerStatus | None]]]]) -> Table:
    """What the workers say themselves; None for one that does not answer."""
    from rbee_remote.protocol import encode

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, "-", "-", "unreachable", "-", "-", why(answer.error)))
            data.append({"node": name, **error_value(answer.error)})
        for info, status in answer.value or ():
            cells = (f"{status.slots_free}/{status.slots} free", str(status.queued)) if status else ("-", "-")
            state = status.state.value if status else "no answer"
            rows.append((name, info.id[:SHORT_ID], info.model, state, *cells, ""))
            data.append({"node": name, "id": info.id, "healthy": bool(status), "status": status and encode(status)})
    return Table(("NODE", "ID", "MODEL", "HEALTH", "SLOTS", "QUEUED", "NOTE"), rows, data)
