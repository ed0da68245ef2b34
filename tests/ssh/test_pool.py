"""Connections that are shared and stay: over an SSH server that counts them, and one that falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError, RbeeError
from rbee.base.events import silent
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node import pool as pools
from rbee.node.pool import Pool
from rbee.registry import Registry
from tests.patience import PATIENCE_S
from tests.proxy import ChaosProxy
from tests.ssh.servers import Server, asyncssh_server


@pytest.fixture
async def server(user_key: asyncssh.SSHKey) -> AsyncIterator[Server]:
    async with asyncssh_server([user_key]) as running:
        yield running


@pytest.fixture
def node(server: Server, identity: Path) -> Node:
    return server.node(identity)


def context_of(tmp_path: Path, *nodes: Node) -> Context:
    return Context(
        settings=Settings(tmp_path / "keeper"),
        inventory=Inventory({node.name: node for node in nodes}),
        open_registry=lambda: Registry.open(tmp_path / "workers.db"),
        keeper_id="k1",
    )


@pytest.fixture
async def pool(tmp_path: Path, node: Node) -> AsyncIterator[Pool]:
    made = Pool(context_of(tmp_path, node))
    yield made
    await made.aclose()


async def until_closed(connections: list[asyncssh.SSHServerConnection], count: int) -> None:
    """That many of the server's connections are over."""
    async with asyncio.timeout(PATIENCE_S):
        while sum(each.is_closed() for each in connections) < count:
            await asyncio.sleep(0.01)


async def test_several_at_once_open_one_which_stays(pool: Pool, server: Server, node: Node) -> None:
    async def ask() -> bytes:
        async with pool.use(node, silent) as connection:
            return (await connection.run("echo here")).stdout

    assert not pool.holds(node)
    assert await asyncio.gather(*(ask() for _ in range(5))) == [b"here\n"] * 5
    assert await ask() == b"here\n"
    assert len(server.connections) == 1
    assert [held.node for held in pool.held()] == ["gpu1"]
    assert pool.held()[0].idle_s is not None


async def test_who_finds_it_open_has_not_waited_for_it(pool: Pool, node: Node) -> None:
    async with pool.use(node, silent) as first, pool.use(node, silent) as second:
        assert first.timings.authenticate_s > 0
        assert (second.timings.connect_s, second.timings.authenticate_s) == (0.0, 0.0)
        assert pool.held()[0].idle_s is None


async def test_two_who_reopen_share_the_next_and_a_third_stays(pool: Pool, server: Server, node: Node) -> None:
    async with (
        pool.use(node, silent) as first,
        pool.use(node, silent) as second,
        pool.use(node, silent) as third,
        third.stream_script("echo started; exec sleep 600") as lines,
    ):
        assert await anext(lines) == b"started"
        await asyncio.gather(first.reopen(), second.reopen())
        assert len(server.connections) == 2
        for each in (first, second, third):
            assert (await each.run("echo here")).stdout == b"here\n"
        assert not server.connections[0].is_closed()
    await until_closed(server.connections, 1)  # the first one, which its last user has left
    assert not server.connections[1].is_closed()


async def test_a_dead_one_is_dropped_and_another_opened(pool: Pool, server: Server, node: Node) -> None:
    await pool.hold(node)
    server.connections[0].abort()
    await until_closed(server.connections, 1)
    async with pool.use(node, silent) as connection:
        assert (await connection.run("echo here")).stdout == b"here\n"
    assert len(server.connections) == 2


async def test_a_user_reopens_what_broke_under_him(pool: Pool, server: Server, node: Node) -> None:
    async with pool.use(node, silent) as connection:
        server.connections[0].abort()
        with pytest.raises(ConnectError):
            await connection.run("sleep 600")
        await connection.reopen()
        assert (await connection.run("echo here")).stdout == b"here\n"


async def test_one_that_is_silent_is_asked_and_costs_a_second_at_most(
    tmp_path: Path, server: Server, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a night in a bag: nothing comes back, and nothing says so."""
    monkeypatch.setattr(pools, "ASK_AFTER_S", -1.0)
    monkeypatch.setattr(pools, "ANSWER_WITHIN_S", PATIENCE_S)
    async with ChaosProxy(("127.0.0.1", server.port)) as proxy:
        behind = replace(node, port=proxy.port)
        pool = Pool(context_of(tmp_path, behind))
        try:
            await pool.hold(behind)
            assert await pool.is_alive(behind)
            proxy.strike("stall")
            monkeypatch.setattr(pools, "ANSWER_WITHIN_S", 0.2)
            assert not await pool.is_alive(behind)
            assert not pool.holds(behind)
        finally:
            await pool.aclose()


async def test_one_that_nobody_uses_is_closed(tmp_path: Path, server: Server, node: Node) -> None:
    pool = Pool(context_of(tmp_path, node), idle_s=0.05)
    async with pool.use(node, silent) as connection:
        await connection.run("sleep 0.2")
        assert pool.holds(node)
    await until_closed(server.connections, 1)
    assert not pool.holds(node)
    await pool.aclose()


async def test_a_changed_entry_is_another_connection(pool: Pool, tmp_path: Path, node: Node) -> None:
    await pool.hold(node)
    other = replace(node, host="localhost")
    assert not pool.of(context_of(tmp_path, other)).holds(other)
    same = replace(node, tags=frozenset({"cuda"}), model="smollm2:135m")
    assert pool.of(context_of(tmp_path, same)).holds(same)
    hop = replace(node, name="hop")
    behind = replace(node, name="behind", jump=("hop",))
    first, second = context_of(tmp_path, behind, hop), context_of(tmp_path, behind, replace(hop, port=1))
    await pool.of(first).hold(behind)
    assert pool.of(first).holds(behind)
    assert not pool.of(second).holds(behind)


async def test_one_that_cannot_be_opened_is_open_to_the_next_try(pool: Pool, server: Server, node: Node) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    server.show(other)
    with pytest.raises(RbeeError):
        await pool.hold(node)
    assert not pool.holds(node)
    assert pool.held() == []


async def test_this_machine_is_always_there(tmp_path: Path) -> None:
    local = Node("local")
    pool = Pool(context_of(tmp_path, local))
    assert pool.holds(local)
    assert await pool.is_alive(local)
    async with pool.use(local, silent) as connection:
        assert (await connection.run("echo here")).stdout == b"here\n"
    await pool.aclose()
