"""`rbee workers`: what runs where, asked live."""

from __future__ import annotations

import typer

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


def register(app: typer.Typer) -> None:
    workers = group(app, "workers", "The processes that hold a model each.")
    command(workers, "list", example="rbee workers list @cuda")(list_)
    command(workers, "show", example="rbee workers show 3f9a")(show)
    command(workers, "stop", example="rbee workers stop 3f9a --node gpu1")(stop)
    command(workers, "sync", example="rbee workers sync gpu1 --json")(sync)
    command(workers, "health", example="rbee workers health gpu1")(health)


def list_(shell: Shell, nodes: NodesArgument = None) -> None:
    """List the workers of all nodes; a node that does not answer is a row."""
    from rbee.cli.views import workers_table
    from rbee.fleet import workers

    context = shell.context
    shell.renderer.table(workers_table(shell.run(workers.workers(context, context.inventory.select(nodes)))))


def show(shell: Shell, worker: WorkerArgument, node: NodeOption = None) -> None:
    """Show all that a hive knows of one worker."""
    from rbee.cli.views import worker_data, worker_record
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
    from rbee.cli.views import partial_failure, sync_table
    from rbee.fleet import workers

    context = shell.context
    answers = shell.run(workers.sync(context, context.inventory.select(nodes)))
    shell.renderer.table(sync_table(answers))
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure


def health(shell: Shell, nodes: NodesArgument = None) -> None:
    """Ask each worker itself whether it works."""
    from rbee.cli.views import health_table
    from rbee.fleet import workers

    context = shell.context
    answers = shell.run(workers.worker_health(context, context.inventory.select(nodes)))
    shell.renderer.table(health_table(answers))
