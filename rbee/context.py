"""What every use case is handed: where things lie, which nodes there are, whom to ask, and whom to tell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from rbee.base.events import Emit, silent
from rbee.base.settings import Settings
from rbee.inventory import Inventory, Node
from rbee.registry import OpenRegistry

if TYPE_CHECKING:
    from rbee.transport.reconnecting import ReconnectingConnection


class ConnectionPool(Protocol):
    """Connections to nodes that several use cases share, and that stay when one is over."""

    def use(self, node: Node, emit: Emit) -> AbstractAsyncContextManager[ReconnectingConnection]:
        """The connection to a node, opened if none is; leaving the context leaves it open for the next.

        emit: hears how opening it goes. Raises as `node.session.open_connection`.
        """

    def of(self, context: Context) -> ConnectionPool:
        """The same connections, for who has another inventory."""


@dataclass(frozen=True, slots=True)
class Context:
    """keeper_id: 16 hex digits. open_registry: opens workers.db; whoever opens it closes it.

    ask: puts a yes-or-no question to the user; ask_passphrase: shows its prompt and reads without echo, "" for no
    answer. Both None where there is nobody to ask: no terminal, or --json. emit: hears what the use case reports.
    connections: hands out connections that outlive the use case; None where each opens its own.
    """

    settings: Settings
    inventory: Inventory
    open_registry: OpenRegistry
    keeper_id: str
    ask: Callable[[str], Awaitable[bool]] | None = None
    ask_passphrase: Callable[[str], Awaitable[str]] | None = None
    emit: Emit = silent
    connections: ConnectionPool | None = None
