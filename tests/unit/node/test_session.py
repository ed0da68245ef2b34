"""A session with a node: opened the way that worked last time, and what is learned goes back into the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import ConnectError
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.probe import Probe
from rbee.node.session import Attached, NodeSession, on_each, open_session
from rbee.registry import NodeFacts, Registry
from rbee.transport.connection import Connection, SocketAccess
from rbee_remote.protocol import PROTOCOL, ErrorCode, HiveInfo
from tests.doubles.connection import FakeConnection

GPU1, GPU2 = Node("gpu1", host="gpu1.example"), Node("gpu2", host="gpu2.example")
FACTS = NodeFacts("gpu1", "pipe", "/home/bee/.rbee/node", "/run/bee/rbee", "/py", "/p.zip", "/run/bee/rbee/hive.sock")
INFO = HiveInfo(PROTOCOL, "1", "0" * 16, "i", 1, 1, "b", 0.0, FACTS.home, FACTS.hive_socket, 0, draining=False)
PIPE = ("/py", "-I", "/p.zip", "pipe")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Every node is a fake connection, but gpu2, which cannot be connected to."""

    @asynccontextmanager
    async def open_connection(node: Node, *_: Any, access: SocketAccess, **__: Any) -> AsyncIterator[Connection]:
        if node == GPU2:
            raise ConnectError(ErrorCode.CONNECTION_TIMEOUT, "gpu2 cannot be reached")
        async with FakeConnection(access=access) as connection:
            yield connection

    monkeypatch.setattr("rbee.node.session.open_connection", open_connection)
    settings = Settings(home=tmp_path)
    inventory = Inventory({node.name: node for node in (GPU1, GPU2)})
    return Context(settings, inventory, lambda: Registry.open(settings.registry_path), "k" * 16)


def attached(session: NodeSession) -> Attached:
    found = Probe(system="Linux", home=FACTS.home, run_dir=FACTS.run_dir)
    return Attached(session.hive_at(FACTS.run_dir), INFO, found, 0.0, 0.0)


async def test_a_node_of_which_nothing_is_known_is_tried_with_channels(context: Context) -> None:
    async with open_session(context, GPU1) as session:
        assert session.facts is None
        assert session.connection.access == SocketAccess()
        assert not session.is_attached


async def test_what_was_learned_is_where_the_next_session_starts(context: Context) -> None:
    async with open_session(context, GPU1) as session:
        session.connection.use_pipe(PIPE)
        session.connection._current.access = SocketAccess("pipe", PIPE)  # type: ignore[misc]
        session.remember(attached(session), python="/py", payload="/p.zip")
        assert session.attached.info == INFO
    async with open_session(context, GPU1) as session:
        assert session.connection.access == SocketAccess("pipe", PIPE)
        assert session.facts is not None
        assert session.facts.home == FACTS.home


async def test_nothing_is_written_while_nothing_changes(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    with context.open_registry() as registry:
        registry.remember_node(FACTS)
    monkeypatch.setattr(Registry, "remember_node", lambda *_: pytest.fail("it is known already"))
    async with open_session(context, GPU1) as session:
        session.remember(attached(session), python="/py", payload="/p.zip")


async def test_a_node_that_cannot_be_connected_to_is_a_value_beside_the_others(context: Context) -> None:
    async def ask(session: NodeSession) -> str:
        return session.node.name

    first, second = await on_each(context, [GPU1, GPU2], ask)
    assert (first.node, first.value, first.error) == (GPU1, "gpu1", None)
    assert second.value is None
    assert second.error is not None
    assert second.error.code is ErrorCode.CONNECTION_TIMEOUT
