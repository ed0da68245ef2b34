"""A hive that refuses: somebody uses what is to end, or all connections are taken, which is the same for a clean-up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rbee.base.errors import NodeError
from rbee.base.settings import Settings
from rbee.cleanup.act import Outcome, Site
from rbee.cleanup.actions import Plan, StopWorker
from rbee.cleanup.uninstall import UninstallRequest, _Site
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.registry import Registry
from rbee.transport.connection import Stream
from rbee_remote.protocol import ErrorCode, RemoteError
from tests.doubles.connection import FakeConnection
from tests.doubles.session import session_over
from tests.unit.cleanup.gc_samples import HOME, NODE, RUN_DIR, WORKER, seen

FOUND = Probe(system="Linux", home=HOME, run_dir=RUN_DIR, hive_socket_present=True)


@pytest.fixture
async def connection() -> AsyncIterator[FakeConnection]:
    async with FakeConnection() as connection:
        yield connection


@pytest.fixture(params=[ErrorCode.IN_USE, ErrorCode.ALL_SLOTS_BUSY])
def session(request: pytest.FixtureRequest, connection: FakeConnection, tmp_path: Path) -> NodeSession:
    """With a node whose hive refuses everything for that reason."""
    said = json.dumps(RemoteError(request.param, "not now").encode()).encode()

    async def refuse(stream: Stream) -> None:
        await stream.read(2**16)
        head = f"HTTP/1.1 503 x\r\ncontent-type: application/json\r\ncontent-length: {len(said)}\r\n\r\n"
        await stream.write(head.encode() + said)

    connection.listen(f"{RUN_DIR}/hive.sock", refuse)
    settings = Settings(home=tmp_path)
    context = Context(settings, Inventory({}), lambda: Registry.open(settings.registry_path), "k" * 16)
    return session_over(connection, Node(NODE, host="x"), context)


async def test_a_clean_up_leaves_the_worker_to_the_next_one(session: NodeSession) -> None:
    action = StopWorker(NODE, "idle for long", WORKER, "smollm2:135m", 330.0)
    outcomes: list[Outcome] = []
    site = Site(session, FOUND, session.hive_at(RUN_DIR), patience_s=0.1)
    await site.act(Plan((action,), ()), seen(), outcomes)
    assert outcomes == [Outcome(action, note="not now")]


async def test_an_uninstall_ends_nothing_by_signals(session: NodeSession, connection: FakeConnection) -> None:
    with pytest.raises(NodeError, match="not now"):
        await _Site(session, UninstallRequest(), FOUND)._end(session.hive_at(RUN_DIR))
    assert connection.scripts == []
