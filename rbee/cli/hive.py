"""`rbee hive`: the processes that supervise the workers."""

from __future__ import annotations

import typer

from rbee.cli.options import PATIENCE, NodeArgument, NodesArgument, NowOption, PatienceOption, patience_s
from rbee.cli.shell import Shell, command, group


def register(app: typer.Typer) -> None:
    hive = group(app, "hive", "The process on a node that supervises its workers.")
    command(hive, "status", example="rbee hive status")(status)
    command(hive, "stop", example="rbee hive stop gpu1")(stop)


def status(shell: Shell, nodes: NodesArgument = None) -> None:
    """Show where a hive runs. Starts none."""
    from rbee.cli.views import hives_table
    from rbee.fleet import hives

    context = shell.context
    shell.renderer.table(hives_table(shell.run(hives.hives(context, context.inventory.select(nodes)))))


def stop(shell: Shell, node: NodeArgument, now: NowOption = False, patience: PatienceOption = PATIENCE) -> None:
    """Let running requests finish, then stop the hive and its workers.

    With --now, one that does not answer is ended by signals.
    """
    from rbee.fleet import hives

    seconds = patience_s(patience)
    context = shell.context
    where = context.inventory.node(node)
    stopped = shell.run(hives.stop_hive(context, where, drain=not now, patience_s=seconds))
    text = f"stopped the hive of {node}" if stopped else f"no hive runs on {node}"
    shell.renderer.done(text, {"node": node, "stopped": stopped})
