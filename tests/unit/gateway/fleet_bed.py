"""Nodes whose connections, hives and workers a test sets, and a fleet that holds them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee import inventory
from rbee.base.errors import RbeeError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.gateway.base.views import NodeState, NodeView
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.inventory import Inventory, Node
from rbee.node.probe import Probe
from rbee.node.session import Attached, NodeSession
from rbee.registry import NodeFacts, Registry
from rbee.transport.connection import Connection
from rbee_remote.protocol import WorkerInfo
from tests.doubles.connection import FakeConnection
from tests.doubles.hive import ScriptedNode
from tests.patience import PATIENCE_S


class Bed:
    """errors: by node, what connecting to it raises. hangs: nodes to which it takes for ever. opened, attached: names
    of nodes, as that happened. attach_error: what setting up a node raises."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        self.errors: dict[str, RbeeError] = {}
        self.hangs: set[str] = set()
        self.opened: list[str] = []
        self.attached: list[str] = []
        self.attach_error: RbeeError | None = None
        self.nodes: dict[str, ScriptedNode] = {}
        self.connections: dict[str, FakeConnection] = {}
        self.open_now = 0
        self.settings = Settings(home=folder)

    @asynccontextmanager
    async def open_connection(self, node: Node, *_: Any, **__: Any) -> AsyncIterator[Connection]:
        self.opened.append(node.name)
        if node.name in self.hangs:
            await asyncio.get_running_loop().create_future()
        if error := self.errors.get(node.name):
            raise error
        async with FakeConnection() as connection:
            self.nodes.setdefault(node.name, ScriptedNode()).listen(connection)
            self.connections[node.name] = connection
            self.open_now += 1
            try:
                yield connection
            finally:
                self.open_now -= 1

    async def attach(self, session: NodeSession, meanwhile: object = None, *, wait_for_gpu: bool = False) -> Attached:
        del meanwhile, wait_for_gpu  # nothing is made here
        self.attached.append(session.node.name)
        if self.attach_error:
            raise self.attach_error
        node = self.nodes[session.node.name]
        probe = Probe(system="Linux", home="/home", run_dir=node.run_dir)
        attached = Attached(session.hive_at(node.run_dir), node.info, probe, 0.0, 0.0)
        session.remember(attached, python="/python", payload="/payload.zip")
        return attached

    async def used(self, name: str, *workers: WorkerInfo) -> ScriptedNode:
        """A node that rbee has used before, with these workers."""
        self.know(name)
        node = self.nodes[name] = ScriptedNode()
        await node.tell(*workers)
        return node

    def know(self, *names: str) -> None:
        """The registry has something of these nodes."""
        with self.open_registry() as registry:
            for name in names:
                registry.remember_node(NodeFacts(name, "forward", "/home", "/run", "/python", "/payload.zip", ""))

    def open_registry(self) -> Registry:
        return Registry.open(self.settings.home / "workers.db")

    def context(self, *names: str) -> Context:
        nodes = {name: Node(name, host=f"{name}.example") for name in names}
        return Context(self.settings, Inventory(nodes), self.open_registry, "k" * 16, emit=self.events.append)

    def context_of(self, text: str) -> Context:
        """With an inventory in rbee's home."""
        self.write_inventory(text)
        return Context(
            self.settings,
            inventory.load(None, self.settings),
            self.open_registry,
            "k" * 16,
            emit=self.events.append,
        )

    def write_inventory(self, text: str) -> None:
        path = self.settings.inventory_path
        path.with_suffix(".other").write_text(text)
        path.with_suffix(".other").chmod(0o600)
        path.with_suffix(".other").rename(path)

    @property
    def notices(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Notice)]


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    """Pauses are short."""
    bed = Bed(tmp_path)
    monkeypatch.setattr("rbee.node.session.open_connection", bed.open_connection)
    monkeypatch.setattr("rbee.setup.attach.attach", bed.attach)
    monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_PAUSE_S", 0.001)
    monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_LONGEST_PAUSE_S", 0.01)
    return bed


async def until(fleet: NodeFleet, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await fleet.wait_changed(fleet.version)


async def node_that(fleet: NodeFleet, name: str, condition: Callable[[NodeView], bool]) -> NodeView:
    """Its view, once it is like that."""

    def view() -> NodeView:
        return next(view for view in fleet.nodes if view.name == name)

    await until(fleet, lambda: condition(view()))
    return view()


async def up(fleet: NodeFleet, name: str) -> NodeView:
    return await node_that(fleet, name, lambda view: view.state is NodeState.UP)


async def down(fleet: NodeFleet, name: str) -> NodeView:
    return await node_that(fleet, name, lambda view: view.state is NodeState.DOWN)
