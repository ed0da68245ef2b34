"""`rbee version`."""

from __future__ import annotations

import typer

from rbee.cli.shell import Shell, command
from rbee.render import Table


def register(app: typer.Typer) -> None:
    command(app, "version", example="rbee version --json")(version)


def version(shell: Shell) -> None:
    """Show the versions of rbee, its protocol and Python; with -v what is pinned, and by which SHA-256."""
    import platform

    from rbee_remote.protocol import PROTOCOL, VERSION

    versions = {"rbee": VERSION, "protocol": PROTOCOL, "python": platform.python_version()}
    if not shell.options.verbose:
        shell.renderer.record(versions)
        return
    import dataclasses

    from rbee.cli.pinned import pinned

    fixed = list(pinned())
    if shell.options.json:
        shell.renderer.record({**versions, "pinned": [dataclasses.asdict(item) for item in fixed]})
        return
    shell.renderer.record(versions)
    rows = [(item.part, item.name, item.version, item.installed, item.by(), item.marker) for item in fixed]
    shell.renderer.table(Table(("PART", "NAME", "VERSION", "INSTALLED", "SHA256", "FOR"), rows, ()))
