"""What ends a request before its answer is complete: the deadline, or a connection that cannot be opened again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.base.events import Event, Notice, Phase
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.infer.partial import PartialAnswer
from rbee.infer.request import InferRequest
from rbee.infer.session import InferSession
from rbee.inventory import Inventory, Node
from rbee.node.socket_http import SilenceError
from rbee.registry import Registry
from rbee.transport.connection import Connection
from rbee_remote.protocol import ErrorCode, TokenEvent
from tests.doubles.connection import FakeConnection

GPU1 = Node("gpu1", host="gpu1.example")
LOST = ConnectError(ErrorCode.CONNECTION_LOST, "it broke", hint="try again", details={"reason": "reset by peer"})


class Network:
    """opened: how often gpu1 was connected to. is_down: it cannot be any more."""

    def __init__(self) -> None:
        self.opened = 0
        self.is_down = False

    @asynccontextmanager
    async def open_connection(self, *_: Any, **__: Any) -> AsyncIterator[Connection]:
        if self.is_down:
            raise ConnectError(ErrorCode.CONNECTION_TIMEOUT, "gpu1 cannot be reached")
        self.opened += 1
        async with FakeConnection() as connection:
            yield connection


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    network = Network()
    monkeypatch.setattr("rbee.node.session.open_connection", network.open_connection)
    return network


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
async def session(network: Network, events: list[Event], tmp_path: Path) -> AsyncIterator[InferSession]:
    with Registry.open(tmp_path / "workers.db") as registry:
        settings = Settings(home=tmp_path)
        context = Context(settings, Inventory({"gpu1": GPU1}), lambda: registry, "k" * 16, emit=events.append)
        async with InferSession(InferRequest(timeout_s=0.05), context, registry) as session:
            yield session


async def test_a_node_is_connected_to_once(session: InferSession, network: Network) -> None:
    assert await session.on(GPU1) is await session.on(GPU1)
    assert network.opened == 1


async def test_the_deadline_names_the_phase_and_where_the_text_is(session: InferSession, tmp_path: Path) -> None:
    partial = PartialAnswer(tmp_path / "answer.txt", max_tokens=20)

    async def wait() -> None:
        async with session.in_time(partial.save):
            with session.clock.phase(Phase.INFERENCE, "m"):
                partial.add(TokenEvent("bee", 12))
                await asyncio.sleep(60)

    with pytest.raises(NodeError) as caught:
        await wait()
    assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
    assert "of 0.05 s passed in phase 8 (inference)" in caught.value.message
    assert caught.value.details == {"generated": "12 of 20 tokens", "saved": str(partial.path)}
    assert partial.path.read_text() == "bee"


async def test_ctrl_c_is_not_taken_for_the_deadline(session: InferSession) -> None:
    async def wait() -> None:
        async with session.in_time():
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.1)  # the deadline passes while the node is told

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_that_broke_is_opened_again(
    session: InferSession, network: Network, events: list[Event]
) -> None:
    await session.on(GPU1)
    await session.reconnect(GPU1, LOST)
    assert network.opened == 2
    assert events == [Notice("lost the connection to gpu1, trying again")]


async def test_one_that_cannot_be_opened_again_is_told_with_what_broke_it(
    session: InferSession, network: Network
) -> None:
    await session.on(GPU1)
    network.is_down = True
    with pytest.raises(ConnectError) as caught:
        await session.reconnect(GPU1, LOST)
    assert caught.value.code is ErrorCode.CONNECTION_LOST
    assert caught.value.message == "lost the connection to gpu1 and could not reconnect"
    assert (caught.value.hint, caught.value.details) == (LOST.hint, LOST.details)
    assert LOST.message == "it broke"


@pytest.mark.parametrize("connected", [False, True], ids=["never connected", "something hangs"])
async def test_what_another_connection_would_not_mend_is_raised_as_it_is(
    session: InferSession, network: Network, connected: bool
) -> None:
    error = SilenceError("GET /v1/health", 10.0) if connected else LOST
    if connected:
        await session.on(GPU1)
    with pytest.raises(ConnectError) as caught:
        await session.reconnect(GPU1, error)
    assert caught.value is error
    assert network.opened == connected


def test_an_error_half_way_is_another_one_of_its_kind_that_says_how_far_things_had_come() -> None:
    error = SilenceError("GET /v1/requests", 10.0)
    later = error.after("3 of 20 tokens", {"saved": "/a.txt"})
    assert isinstance(later, SilenceError)
    assert (later.code, later.hint) == (error.code, error.hint)
    assert later.message == f"{error.message}, after 3 of 20 tokens"
    assert (later.details, error.details) == ({"saved": "/a.txt"}, {})
