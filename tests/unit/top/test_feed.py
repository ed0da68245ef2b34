"""Nodes as they are watched, over scripted connections: heard, lost and found again, without and with a hive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import ConnectError, ElsewhereError, NodeError
from rbee.base.events import Emit, Retry
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.probe import parse
from rbee.registry import NodeFacts, Registry
from rbee.top import feed as feeding
from rbee.top.feed import Feeds, reason
from rbee.top.model import NodeState
from rbee.top.once import document, once, table
from rbee.top.watched import WatchedNode
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import ErrorCode, NodeLoad, Work, WorkerLoad, WorkerState
from tests.doubles.connection import FakeConnection
from tests.doubles.hive import ScriptedNode, worker_info
from tests.hostile import PROBE
from tests.patience import PATIENCE_S

ID = "a" * 16
RUN_DIR = "/run/user/1000/rbee/6d5de6ab"


class Connections:
    """A pool whose connections a test makes. errors: what connecting fails with, before it works; by node."""

    def __init__(self) -> None:
        self.of_node: dict[str, FakeConnection] = {}
        self.errors: dict[str, list[Exception]] = {}
        self.opened = 0

    def use(self, node: Node, emit: Emit) -> ReconnectingConnection:
        @asynccontextmanager
        async def opened(*_: object) -> AsyncIterator[FakeConnection]:
            if errors := self.errors.get(node.name):
                emit(Retry("connect", 1, 3, "no route", 0.0))
                await asyncio.sleep(0)
                raise errors.pop(0)
            self.opened += 1
            yield self.of_node[node.name]

        return ReconnectingConnection(node.name, opened, emit)

    def of(self, context: Context) -> Connections:
        del context
        return self


class Bed:
    """Nodes by name, each with a connection and, once `listens`, a hive."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.connections = Connections()
        self.nodes = {name: Node(name=name, host=name) for name in names}
        self.hives = {name: ScriptedNode(RUN_DIR) for name in names}
        for name in names:
            self.connections.of_node[name] = connection = FakeConnection()
            connection.answer("home_wanted", PROBE.format(payload="p", runtime="r", run_name="none").encode())
        self.context = Context(
            settings=Settings(folder),
            inventory=Inventory(self.nodes),
            open_registry=lambda: Registry.open(folder / "workers.db"),
            keeper_id="k" * 16,
            connections=self.connections,
        )
        self.woken = asyncio.Event()

    def know(self, name: str) -> None:
        """The registry has it."""
        with self.context.open_registry() as registry:
            registry.remember_node(NodeFacts(name, "forward", "/h", RUN_DIR, "/python", "/payload", ""))

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[dict[str, WatchedNode]]:
        async with Feeds(self.context, list(self.nodes.values()), self.woken.set) as feeds:
            yield feeds.nodes

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.woken.clear()
                await self.woken.wait()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_PAUSE_S", 0.01)
    monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_REFUSED_PAUSE_S", 0.01)


def load(at: float, generated: int) -> NodeLoad:
    return NodeLoad(at, 4, 0.5, 16_000, 4_000, workers=(WorkerLoad(ID, 1, 3, 200, Work(generated, 5, 1, 0.25)),))


async def test_a_hive_is_heard_over_one_stream(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "gpu1")
    bed.know("gpu1")
    hive = bed.hives["gpu1"]
    hive.load = load(10.0, 0)
    await hive.tell(worker_info(ID, WorkerState.BUSY, run_dir=RUN_DIR))
    hive.listen(bed.connections.of_node["gpu1"])
    async with bed.watched() as nodes:
        await bed.until(lambda: nodes["gpu1"].heard_load == 1)
        hive.load = load(11.0, 42)
        await hive.changed()
        await bed.until(lambda: nodes["gpu1"].heard_load == 2)
        row = nodes["gpu1"].row(0.0)
        assert (row.state, row.rate, row.queued, row.first_token_s) == (NodeState.UP, 42.0, 3, 0.25)
        await hive.tell()
        await bed.until(lambda: not nodes["gpu1"].row(0.0).workers)
    assert hive.asked == 1
    assert bed.connections.of_node["gpu1"].scripts == []  # nothing was run there


async def test_a_hive_that_starts_later_is_found_and_one_that_ends_is_missed(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "gpu1")
    connection, hive = bed.connections.of_node["gpu1"], bed.hives["gpu1"]
    async with bed.watched() as nodes:
        await bed.until(lambda: nodes["gpu1"].state is NodeState.NO_HIVE)
        assert (nodes["gpu1"].row(0.0).cores, nodes["gpu1"].row(0.0).ram_total_mb) == (4, 8_192)
        hive.run_dir = parse(PROBE.format(payload="p", runtime="r", run_name="none").encode()).run_dir
        hive.listen(connection)
        await bed.until(lambda: nodes["gpu1"].state is NodeState.UP)
        connection.stop_listening(hive.hive_socket)
        connection.end_streams()
        await bed.until(lambda: nodes["gpu1"].state is NodeState.NO_HIVE)
    assert bed.connections.opened == 1
    assert len(connection.scripts) == 1


async def test_a_node_that_cannot_be_reached_says_why_and_is_tried_again(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "gpu1", "gpu2")
    refused = ConnectError(
        ErrorCode.CONNECTION_TIMEOUT, "gpu1 cannot be reached", details={"reason": "no route to host"}
    )
    bed.connections.errors["gpu1"] = [refused, refused, ValueError("a bug")]
    for name in ("gpu1", "gpu2"):
        bed.know(name)
        bed.hives[name].listen(bed.connections.of_node[name])
    whys: list[str] = []
    async with bed.watched() as nodes:
        watched = nodes["gpu1"]

        def up() -> bool:
            if watched.why not in whys[-1:]:
                whys.append(watched.why)
            return watched.state is NodeState.UP

        await bed.until(up)
        await bed.until(lambda: nodes["gpu2"].state is NodeState.UP)
    assert "cannot be reached (no route to host)" in whys
    assert "try 1 of 3 failed: no route" in whys
    assert whys[-1] == ""


async def test_a_hive_that_is_silent_is_down_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "HOLD_SILENCE_S", 1.0)
    bed = Bed(tmp_path, "gpu1")
    bed.know("gpu1")
    hive = bed.hives["gpu1"]
    hive.listen(bed.connections.of_node["gpu1"])
    async with bed.watched() as nodes:
        await bed.until(lambda: nodes["gpu1"].state is NodeState.UP)
        hive.mute = True
        await bed.until(lambda: nodes["gpu1"].state is NodeState.DOWN)
        assert "no answer to GET /v1/news" in nodes["gpu1"].why
        hive.mute = False
        await bed.until(lambda: nodes["gpu1"].state is NodeState.UP)


async def test_once_waits_for_two_readings_and_for_no_node_that_is_lost(tmp_path: Path) -> None:
    bed = Bed(tmp_path, "gpu1", "gpu2", "gpu3")
    bed.connections.errors["gpu2"] = [NodeError(ErrorCode.NODE_UNSUPPORTED, "it is a toaster")] * 10_000
    bed.know("gpu1")
    hive = bed.hives["gpu1"]
    hive.load = load(10.0, 0)
    await hive.tell(worker_info(ID, WorkerState.BUSY, run_dir=RUN_DIR))
    hive.listen(bed.connections.of_node["gpu1"])
    asking = asyncio.create_task(once(bed.context, list(bed.nodes.values()), PATIENCE_S))
    async with asyncio.timeout(PATIENCE_S):
        while not hive.asked:
            await asyncio.sleep(0.01)
        hive.load = load(11.0, 30)
        await hive.changed()
        fleet = await asking
    said = document(fleet)
    assert [(each["node"], each["state"], each["reason"]) for each in said["nodes"]] == [
        ("gpu1", "up", ""),
        ("gpu2", "down", "it is a toaster"),
        ("gpu3", "no hive", ""),
    ]
    assert said["nodes"][0]["workers"][0] | {"idle_s": None} == {
        "id": ID, "model": "smollm2:135m", "state": "busy", "device": "cpu", "ctx": 512, "slots": 2, "running": 1,
        "queued": 3, "tokens_per_s": 30.0, "first_token_s": 0.25, "requests": 1, "generated_tokens": 30, "rss_mb": 200,
        "progress": 1.0, "idle_s": None, "error": "",
    }  # fmt: skip
    assert said["tokens_per_s"] == 30.0
    shown = table(fleet)
    assert {len(row) for row in shown.rows} == {len(shown.columns)}
    assert [row[0] for row in shown.rows] == ["gpu1", "gpu1", "gpu2", "gpu3"]


async def test_a_process_that_does_not_hold_the_connections_says_so_at_once(tmp_path: Path) -> None:
    """A holder of connections that `top --once` is run by: the command goes the direct way, and waits for nothing."""
    bed = Bed(tmp_path, "gpu1", "gpu2")

    class NotHeld(Connections):
        def use(self, node: Node, emit: Emit) -> ReconnectingConnection:
            raise ElsewhereError(f"the connection to {node.name} is not held")

    with pytest.raises(ElsewhereError):
        await once(replace(bed.context, connections=NotHeld()), list(bed.nodes.values()), float("inf"))


def test_a_reason_is_a_clause_behind_the_nodes_name() -> None:
    lost = ConnectError(ErrorCode.CONNECTION_LOST, "gpu1 cannot be reached", details={"reason": "refused"})
    assert reason(lost, "gpu1") == "cannot be reached (refused)"
    assert reason(ValueError("x"), "gpu1") == "ValueError: x"
