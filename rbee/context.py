"""What every use case is handed: where things lie, which nodes there are, whom to ask, and whom to tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from rbee.base.events import Emit, silent
from rbee.base.settings import Settings
from rbee.inventory import Inventory
from rbee.registry import OpenRegistry


@dataclass(frozen=True, slots=True)
class Context:
    """keeper_id: 16 hex digits. open_registry: opens workers.db; whoever opens it closes it.

    ask: puts a yes-or-no question to the user; ask_passphrase: shows its prompt and reads without echo, "" for no
    answer. Both None where there is nobody to ask: no terminal, or --json. emit: hears what the use case reports.
    """

    settings: Settings
    inventory: Inventory
    open_registry: OpenRegistry
    keeper_id: str
    ask: Callable[[str], Awaitable[bool]] | None = None
    ask_passphrase: Callable[[str], Awaitable[str]] | None = None
    emit: Emit = silent
