"""`rbee top` for the nodes of `scripted_hives`: `scripted_top.py FOLDER COUNT`, on the terminal that it is started on.
FOLDER/all-up is made once all of them are heard."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar

from rbee.base.events import Emit
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.registry import NodeFacts, Registry
from rbee.render import Output
from rbee.render.screen import FullScreen
from rbee.top import feed, run
from rbee.top.columns import Glyphs
from rbee.top.feed import Feeds
from rbee.top.model import NodeState
from rbee.transport.local import LocalConnection
from rbee.transport.reconnecting import ReconnectingConnection


class LocalPool:
    """Every node is this machine."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def use(self, node: Node, emit: Emit) -> AbstractAsyncContextManager[ReconnectingConnection]:
        return ReconnectingConnection(node.name, lambda *_: LocalConnection(keeper_id="k"), emit)

    def of(self, context: Context) -> LocalPool:
        return LocalPool(context)

    async def aclose(self) -> None:
        pass


class KnownFeeds(Feeds):
    """made: those that there are."""

    made: ClassVar[list[KnownFeeds]] = []

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.made.append(self)


async def _watch(folder: Path, count: int) -> None:
    nodes = [Node(name=f"node{number:04}", host="h") for number in range(count)]
    with Registry.open(folder / "workers.db") as registry:
        for number, node in enumerate(nodes):
            registry.remember_node(NodeFacts(node.name, "forward", "/h", str(folder / str(number)), "/p", "/p", ""))
    context = Context(
        settings=Settings(folder / "home"),
        inventory=Inventory({node.name: node for node in nodes}),
        open_registry=lambda: Registry.open(folder / "workers.db"),
        keeper_id="k" * 16,
    )
    vars(feed).update(Pool=LocalPool)
    vars(run).update(Feeds=KnownFeeds)
    telling = asyncio.create_task(_tell(folder, count))
    await run.live(context, nodes, FullScreen(Output(sys.stdout), color=True), Glyphs())
    telling.cancel()


async def _tell(folder: Path, count: int) -> None:
    while sum(node.state is NodeState.UP for feeds in KnownFeeds.made for node in feeds.nodes.values()) < count:
        await asyncio.sleep(0.5)
    (folder / "all-up").touch()


if __name__ == "__main__":
    asyncio.run(_watch(Path(sys.argv[1]), int(sys.argv[2])))
