"""`rbee version`."""

from __future__ import annotations

import typer

from rbee.cli.shell import Shell, command


def register(app: typer.Typer) -> None:
    command(app, "version", example="rbee version --json")(version)


def version(shell: Shell) -> None:
    """Show the versions of rbee, its protocol and Python."""
    import platform

    from rbee import __version__
    from rbee_remote.protocol import PROTOCOL

    shell.renderer.record({"rbee": __version__, "protocol": PROTOCOL, "python": platform.python_version()})
