"""The inventory, read again when its file is another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from rbee import inventory
from rbee.base.errors import ConfigError, UsageError
from rbee.base.events import Notice
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.inventory.aliases import ModelAlias

#: What tells one state of a file from another: device, inode, size, time of change; None where there is no file.
_Stamp = tuple[int, int, int, int] | None


class WatchedInventory:
    """context: with the inventory as it was read at the start. selector: as of `Inventory.select`, None for all nodes.

    aliases: of the gateway's own, beside those of the file.

    A file that is broken, or that has no node any more which the selector means, leaves things as they are, and is told
    of once.
    """

    def __init__(
        self, context: Context, selector: str | None = None, aliases: Mapping[str, ModelAlias] = MappingProxyType({})
    ) -> None:
        self._aliases = aliases
        self._context = context
        self._selector = selector
        self._path = context.inventory.path
        self._stamp = self._look()
        self.inventory = self._with_aliases(context.inventory)
        self.nodes = _selected(context.inventory, selector)

    def changed(self) -> bool:
        """Whether the file is another than the last time this was asked. Costs one look at it."""
        stamp, before = self._look(), self._stamp
        self._stamp = stamp
        return stamp != before

    def read(self) -> bool:
        """Read the file again; whether that gave another inventory."""
        try:
            read = self._with_aliases(inventory.load(self._path, self._context.settings))
            nodes = _selected(read, self._selector)
        except (ConfigError, UsageError) as error:
            self._context.emit(Notice(f"{error.message}; the inventory as it was read before stays in use"))
            return False
        is_another = read != self.inventory
        self.inventory, self.nodes = read, nodes
        return is_another

    def _with_aliases(self, read: Inventory) -> Inventory:
        return replace(read, models={**read.models, **self._aliases}) if self._aliases else read

    def _look(self) -> _Stamp:
        path: Path | None = self._path or inventory.find(None, self._context.settings)
        try:
            status = os.stat(path) if path else None  # noqa: PTH116 - one call, once a second
        except OSError:
            return None
        return status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _selected(read: Inventory, selector: str | None) -> dict[str, Node]:
    """In the inventory's order. Raises UsageError."""
    return {node.name: node for node in read.select(selector)}


def reached_alike(node: str, before: Mapping[str, Node], after: Mapping[str, Node]) -> bool:
    """Whether a connection to `node`, and what is known of its hive, is of use with the other inventory, too."""
    old, new = before.get(node), after.get(node)
    if old is None or new is None:
        return old is new  # a jump host of that name is not one of the inventory, in both
    if any(getattr(old, key) != getattr(new, key) for key in (*sorted(inventory.schema.REACH), "home")):
        return False
    return all(reached_alike(hop, before, after) for hop in new.jump)
