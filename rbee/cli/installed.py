"""A command as cron or systemd have to run it: from wherever they are, with the settings that it has here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from rbee.base import installation
from rbee.cli.shell import Shell


def command_words(shell: Shell, name: str, options: Mapping[str, Iterable[str]]) -> list[str]:
    """`rbee NAME`, with the inventory where it would find another one there, and each option once for each value."""
    words = [*installation.command(), name]
    inventory = shell.inventory.path
    if inventory and inventory.absolute() != shell.settings.inventory_path:
        words += ["--inventory", str(inventory.absolute())]
    return words + [word for option, values in options.items() for value in values for word in (option, value)]


def variables(shell: Shell) -> dict[str, str]:
    """Environment variables that it has here and would not have there."""
    found = {}
    if os.environ.get("RBEE_HOME"):
        found["RBEE_HOME"] = str(shell.settings.home)
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    if runtime_dir and runtime_dir != f"/run/user/{os.getuid()}":  # which is looked at anyway
        found["XDG_RUNTIME_DIR"] = str(Path(runtime_dir).absolute())
    return found


def show(shell: Shell, files: Mapping[str, str], text: str) -> None:
    """What `--install` prints. files: by kind, with `--json`. text: the same for people."""
    if shell.options.json:
        shell.renderer.record(dict(files))
    else:
        shell.renderer.write(text)
