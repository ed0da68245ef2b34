"""`rbee logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from rbee.cli.options import NodeArgument
from rbee.cli.shell import Shell, command


def register(app: typer.Typer) -> None:
    command(app, "logs", example="rbee logs gpu1 --worker 3f9a --follow")(logs)


def logs(
    shell: Shell,
    node: NodeArgument,
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="ID", help="Show this worker's log; without it, the hive's.")
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many lines to show, from the end.")
    ] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing what is added.")] = False,
) -> None:
    """Show the log of a node's hive, or of one of its workers."""
    from rbee.fleet import logs as use_case

    context = shell.context
    renderer = shell.renderer

    def write(line: bytes) -> None:
        renderer.write(line.decode(errors="replace"))

    shell.run(
        use_case.logs(
            context,
            context.inventory.node(node),
            worker=worker,
            lines=lines,
            follow=follow,
            write=write,
        )
    )
