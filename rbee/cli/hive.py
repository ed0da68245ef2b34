"""`rbee hive`: the processes that supervise the workers."""

from __future__ import annotations

import typer

from rbee.cli.options import NodeArgument, NodesArgument, NowOption
from rbee.cli.shell import Shell, command, group


def register(app: typer.Typer) -> None:
    hive = group(app, "hive", "The process on a node that supervises its workers.")
    command(hive, "status", example="rbee hive status")(status)
    command(hive, "stop", example="rbee hive stop gpu1")(stop)


def status(shell: Shell, nodes: NodesArgument = None) -> None:
    """Show where a hive runs. Starts none."""
    from rbee import fleet
    from rbee.cli.views import hives_table

    context = shell.context
    shell.renderer.table(hives_table(shell.run(fleet.hives(context, context.inventory.select(nodes)))))


def stop(shell: Shell, node: NodeArgument, now: NowOption = False) -> None:
    """Let running requests finish, then stop the hive and its workers."""
    from rbee import fleet

    context = shell.context
    info = shell.run(fleet.stop_hive(context, context.inventory.node(node), drain=not now, emit=shell.renderer))
    text = f"stopped the hive of {node}" if info else f"no hive runs on {node}"
    shell.renderer.done(text, {"node": node, "stopped": info is not None})
