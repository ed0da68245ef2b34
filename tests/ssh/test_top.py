"""Nodes that are watched over real SSH: heard over one connection each, lost, shown with why, and found again."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest

from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory
from rbee.node.pool import Pool
from rbee.registry import NodeFacts, Registry
from rbee.top.feed import Feeds
from rbee.top.model import NodeState
from rbee.top.once import once
from rbee_remote.protocol import NodeLoad, Work, WorkerLoad, WorkerState
from tests.doubles.hive import ScriptedNode, worker_info
from tests.patience import PATIENCE_S
from tests.proxy import ChaosProxy
from tests.ssh.conftest import write_key
from tests.ssh.servers import asyncssh_server

ID = "a" * 16


def load(at: float, generated: int) -> NodeLoad:
    return NodeLoad(at, 4, 0.5, 16_000, 4_000, workers=(WorkerLoad(ID, 1, 0, 200, Work(generated, 5, 1, 0.25)),))


async def test_two_nodes_are_watched_and_one_that_is_lost_comes_back(
    user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_PAUSE_S", 0.01)
    woken = asyncio.Event()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                woken.clear()
                await woken.wait()

    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as run_dir:
        hive = ScriptedNode(run_dir)
        hive.load = load(10.0, 0)
        await hive.tell(worker_info(ID, WorkerState.BUSY, run_dir=run_dir))
        async with (
            hive.serve(),
            asyncssh_server([user_key]) as steady,
            asyncssh_server([user_key]) as shaky,
            ChaosProxy(("127.0.0.1", shaky.port)) as proxy,
        ):
            nodes = [steady.node(identity, name="steady"), shaky.node(identity, name="shaky", port=proxy.port)]
            with Registry.open(tmp_path / "workers.db") as registry:
                for node in nodes:
                    registry.remember_node(NodeFacts(node.name, "forward", "/h", run_dir, "/python", "/payload", ""))
            context = Context(
                settings=Settings(tmp_path / "keeper"),
                inventory=Inventory({node.name: node for node in nodes}),
                open_registry=lambda: Registry.open(tmp_path / "workers.db"),
                keeper_id="k1",
            )
            pool = Pool(context)
            held = Context(context.settings, context.inventory, context.open_registry, "k1", connections=pool)
            async with Feeds(held, nodes, woken.set) as feeds:
                watched = feeds.nodes
                await until(lambda: all(each.heard_load for each in watched.values()))
                hive.load = load(11.0, 42)
                await hive.changed()
                await until(lambda: all(each.row(0.0).rate == 42.0 for each in watched.values()))
                proxy.strike("cut")
                await until(lambda: watched["shaky"].state is not NodeState.UP)
                assert watched["shaky"].why
                await until(lambda: watched["shaky"].state is NodeState.UP)
                assert watched["steady"].state is NodeState.UP
            await pool.aclose()
            assert len(steady.connections) == 1


async def test_nobody_is_asked_for_a_passphrase(user_key: asyncssh.SSHKey, tmp_path: Path) -> None:
    """The screen is no place for it, and a script has nobody."""
    asked: list[str] = []

    async def ask(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    encrypted = write_key(tmp_path / "encrypted", user_key, "secret")
    async with asyncssh_server([user_key]) as server:
        node = server.node(encrypted, name="locked")
        context = Context(
            settings=Settings(tmp_path / "keeper"),
            inventory=Inventory({node.name: node}),
            open_registry=lambda: Registry.open(tmp_path / "workers.db"),
            keeper_id="k1",
            ask_passphrase=ask,
        )
        (row,) = (await once(context, [node], PATIENCE_S)).nodes
    assert (row.state, asked) == (NodeState.DOWN, [])
    assert row.why
