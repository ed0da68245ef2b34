"""`rbee top`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rbee.base.errors import ElsewhereError
from rbee.cli.options import NodesArgument
from rbee.cli.shell import Shell, command


def register(app: typer.Typer) -> None:
    command(app, "top", example="rbee top @gpu", over_link=True)(top)


def top(
    shell: Shell,
    nodes: NodesArgument = None,
    once: Annotated[
        bool,
        typer.Option("--once", help="Print how it is now, and end; so does --json, and where there is no terminal."),
    ] = False,
) -> None:
    """Watch nodes, GPUs, workers, slots and tokens a second, live.

    Keys choose, sort, filter, stop workers and follow logs: the last line has the most important ones, and ? all of
    them. Nothing is installed or started on a node.
    """
    from rbee.base.events import Notice

    once = once or shell.options.json
    if not once and shell.is_for_client:
        raise ElsewhereError("the screen is the client's")
    context = shell.context
    chosen = context.inventory.select(nodes)
    if not once and not _can_show():
        shell.renderer(Notice("this is no terminal that can be drawn on: here is how it is now, as with --once"))
        once = True
    if once:
        from rbee.top import once as use_case

        fleet = shell.run(use_case.once(context, chosen))
        if shell.options.json:
            shell.renderer.record(use_case.document(fleet))
        else:
            shell.renderer.table(use_case.table(fleet))
        return
    from rbee.render import Output
    from rbee.render.screen import FullScreen
    from rbee.top.columns import ASCII, Glyphs
    from rbee.top.run import live

    out = Output(sys.stdout)
    color = not (shell.options.no_color or os.environ.get("NO_COLOR"))
    glyphs = Glyphs() if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else ASCII
    shell.run(live(context, chosen, FullScreen(out, color=color), glyphs))


def _can_show() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
