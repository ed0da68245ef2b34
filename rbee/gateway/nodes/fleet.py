"""All nodes, held: a link to each, their news as one state of things, and workers started where the gateway wants them.

Rules
- What the fleet knows is there to be read at any time; to wait is to wait for another `version`.
- The inventory in use is the fleet's: who needs names, aliases or nodes reads `inventory`, each time.
- A node that the inventory has no more is seen by nobody, and let go once its requests have ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Self

from rbee.base.errors import ConnectError
from rbee.base.events import Event, Notice
from rbee.base.retries import INVENTORY_LOOK_S
from rbee.context import Context
from rbee.gateway.base.interfaces import WorkerHttp
from rbee.gateway.base.views import NodeView, Target, WorkerKey
from rbee.gateway.nodes.node_link import HeldSession, NodeLink
from rbee.gateway.nodes.starts import Starts
from rbee.gateway.nodes.watched_inventory import WatchedInventory, reached_alike
from rbee.gateway.nodes.worker_http import LinkedWorker
from rbee.inventory import Inventory, Node
from rbee.inventory.aliases import ModelAlias
from rbee.registry import Registry
from rbee_remote.protocol import ErrorCode
from rbee_remote.system.changes import Changes


class NodeFleet:
    """A `Fleet`. Used as `async with NodeFleet(context, selector) as fleet`, which returns at once; at its end no task,
    stream or connection is left. selector: which nodes, as of `--node`; None for all. aliases: beside the inventory's.

    context: nobody is asked anything, whatever it has for that. Its `emit` hears notices. Raises UsageError for a
    selector that means no node, ConfigError for a registry that cannot be opened.
    """

    def __init__(
        self, context: Context, selector: str | None = None, aliases: Mapping[str, ModelAlias] = MappingProxyType({})
    ) -> None:
        self._watched = WatchedInventory(context, selector, aliases)
        self._context = replace(
            context, inventory=self._watched.inventory, ask=None, ask_passphrase=None, emit=_notices_to(context)
        )
        self._changes = Changes()
        self._starts = Starts()
        self._links: dict[str, NodeLink] = {}
        self._leaving: set[NodeLink] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._nodes: tuple[int, tuple[NodeView, ...]] = (-1, ())
        self._held = AsyncExitStack()
        self._registry: Registry

    async def __aenter__(self) -> Self:
        self._registry = self._held.enter_context(self._context.open_registry())
        for node in self._watched.nodes.values():
            self._hold(node)
        self._watching = asyncio.create_task(self._watch(), name="watch the inventory")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._starts.aclose()
        links = [*self._links.values(), *self._leaving]
        await asyncio.gather(*(link.aclose() for link in links), *self._closing, return_exceptions=True)
        await self._held.aclose()

    # --- as `Fleet` ---------------------------------------------------------------------------------------------

    @property
    def inventory(self) -> Inventory:
        """As it was read last."""
        return self._watched.inventory

    @property
    def nodes(self) -> tuple[NodeView, ...]:
        if self._nodes[0] != self.version:
            self._nodes = (self.version, tuple(self._links[name].view for name in self._watched.nodes))
        return self._nodes[1]

    @property
    def links(self) -> tuple[NodeLink, ...]:
        """To the nodes of the inventory."""
        return tuple(self._links.values())

    @property
    def version(self) -> int:
        return self._changes.count

    async def wait_changed(self, seen: int) -> None:
        await self._changes.wait(seen=seen)

    async def start_worker(self, node: str, target: Target) -> WorkerKey:
        link = self._links.get(node)
        if link is None:
            raise ConnectError(
                ErrorCode.CONNECTION_LOST,
                f"{node} is not one of the nodes any more",
                hint="the inventory was changed: `rbee nodes list` shows what it has",
            )
        await link.reached()
        return await self._starts.worker(link, target)

    def worker(self, key: WorkerKey) -> WorkerHttp:
        return LinkedWorker(key, lambda: self._link_to(key))

    def begun(self, key: WorkerKey) -> None:
        if link := self._link_to(key):
            link.begun(key.id)

    def ended(self, key: WorkerKey) -> None:
        if link := self._link_to(key):
            link.ended(key.id)
            self._let_go_of_idle()

    def failed(self, key: WorkerKey) -> None:
        if link := self._link_to(key):
            link.doubt(key.id)

    # --- which nodes there are ----------------------------------------------------------------------------------

    def reload(self) -> None:
        """Read the inventory again, now."""
        before = self.inventory.nodes
        if not self._watched.read():
            return
        after = self.inventory.nodes
        self._context = replace(self._context, inventory=self.inventory)
        if pool := self._context.connections:
            self._context = replace(self._context, connections=pool.of(self._context))
        for name, link in list(self._links.items()):
            if name not in self._watched.nodes or not reached_alike(name, before, after):
                self._leaving.add(self._links.pop(name))
            else:
                link.session.context, link.session.node = self._context, self._watched.nodes[name]
                link.touch()
        self._let_go_of_idle()
        for name, node in self._watched.nodes.items():
            if name not in self._links:
                self._hold(node)
        self._changes.notify()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INVENTORY_LOOK_S)
            if self._watched.changed():
                self.reload()

    def _hold(self, node: Node) -> None:
        link = NodeLink(HeldSession(self._context, self._registry, node), self._changes.notify)
        self._links[node.name] = link
        link.start()

    def _link_to(self, key: WorkerKey) -> NodeLink | None:
        """Of a node that was taken out while it answers, the one that its answers come over."""
        links = (link for link in self._leaving if link.node.name == key.node and key.id in link.in_flight)
        return next(links, None) or self._links.get(key.node)

    def _let_go_of_idle(self) -> None:
        for link in [link for link in self._leaving if not link.in_flight]:
            self._leaving.discard(link)
            task = asyncio.create_task(link.aclose(), name=f"let go of {link.node.name}")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _notices_to(context: Context) -> Callable[[Event], None]:
    """What a gateway's log is to have; tries and progress are in the nodes' views."""

    def emit(event: Event) -> None:
        if isinstance(event, Notice):
            context.emit(event)

    return emit
