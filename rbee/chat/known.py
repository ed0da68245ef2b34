"""What there is to complete at the prompt: models, nodes, sessions, paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rbee.base.errors import RbeeError
from rbee.chat.interfaces import Store
from rbee.chat.words import Known
from rbee.context import Context
from rbee.models.ref import built_in

#: Paths that are offered at most.
_MOST_PATHS = 100


def known_of(context: Context, store: Store | None) -> Known:
    return Known(
        models=lambda: models(context),
        nodes=lambda: nodes(context),
        sessions=lambda: sessions(store),
        paths=lambda begun: list(paths(begun)),
    )


def sessions(store: Store | None) -> dict[str, str]:
    """Id to title, the last ones; none where they cannot be read: a completion is no time to say so."""
    try:
        return {each.id: each.title for each in store.listed()} if store else {}
    except RbeeError:
        return {}


def models(context: Context) -> list[str]:
    """Aliases, what nodes run by default, what runs somewhere, and built-in names."""
    inventory = context.inventory
    running: list[str] = []
    try:
        with context.open_registry() as registry:
            running = [row.model for row in registry.rows()]
    except RbeeError:  # a completion is no time to say so
        pass
    defaults = [node.model for node in inventory.nodes.values() if node.model]
    return list(dict.fromkeys([*inventory.models, *defaults, *running, *built_in()]))


def nodes(context: Context) -> list[str]:
    found = context.inventory.nodes.values()
    return [node.name for node in found] + sorted({f"@{tag}" for node in found for tag in node.tags})


def paths(begun: str) -> Iterator[str]:
    """Files and folders that begin so, as they would be typed. Hidden ones where that is what was begun."""
    head, slash, tail = begun.rpartition("/")
    try:
        folder = Path(f"{head}{slash}" or ".").expanduser()
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if entry.name.startswith(tail))
    except (OSError, ValueError, RuntimeError):  # not there, a NUL in it, a ~name of nobody
        return
    shown = [each for each in found if tail.startswith(".") or not each[0].startswith(".")]
    for name, is_folder in shown[:_MOST_PATHS]:
        yield f"{head}{slash}{name}{'/' if is_folder else ''}"
