"""Nodes that a gateway holds over real SSH: lost and found again, and streams of which sshd allows ten a connection."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.gateway.base.views import NodeState, WorkerKey
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.inventory import Inventory, Node
from rbee.node.probe import Probe
from rbee.node.session import Attached, NodeSession
from rbee.registry import NodeFacts, Registry
from tests.doubles.hive import ScriptedNode, says_hello, worker_info
from tests.patience import PATIENCE_S
from tests.proxy import ChaosProxy
from tests.ssh.peers import PIPE
from tests.ssh.servers import SSHD, asyncssh_server, openssh_server

needs_openssh = pytest.mark.skipif(SSHD is None, reason="OpenSSH's sshd is not installed")

WORKER = "a" * 16
KEY = WorkerKey("gpu1", WORKER)
#: Pieces of 16 KiB, and how much of them may wait between a worker that writes and a reader that has stopped: in
#: buffers of the two ends, of sockets and of pipes.
FLOOD = 800
MOST_IN_BETWEEN = 4 * 2**20


class Peer:
    """A node with a hive and a worker that are scripted, behind an sshd, and the fleet that holds it."""

    def __init__(self, node: ScriptedNode, folder: Path) -> None:
        self.node = node
        self.folder = folder

    async def attach(self, session: NodeSession) -> Attached:
        session.connection.use_pipe(PIPE)
        hive = session.hive_at(self.node.run_dir)
        attached = Attached(hive, self.node.info, Probe(system="Linux", home="/h", run_dir=self.node.run_dir), 0.0, 0.0)
        session.remember(attached, python="/python", payload="/payload.zip")
        return attached

    def open_registry(self) -> Registry:
        return Registry.open(self.folder / "workers.db")

    @asynccontextmanager
    async def held(self, entry: Node) -> AsyncIterator[NodeFleet]:
        """Its worker is known."""
        with self.open_registry() as registry:
            registry.remember_node(NodeFacts(entry.name, "forward", "/h", self.node.run_dir, "/python", "/payload", ""))
        settings = Settings(home=self.folder)
        context = Context(settings, Inventory({entry.name: entry}), self.open_registry, "k" * 16)
        async with NodeFleet(context) as fleet:
            await seen(fleet, lambda: bool(fleet.nodes[0].workers))
            yield fleet


@pytest.fixture
async def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Peer]:
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as run_dir:
        node = ScriptedNode(run_dir)
        await node.tell(worker_info(WORKER, run_dir=run_dir))
        peer = Peer(node, tmp_path)
        monkeypatch.setattr("rbee.setup.attach.attach", peer.attach)
        monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_PAUSE_S", 0.01)
        async with node.serve(WORKER):
            yield peer


async def seen(fleet: NodeFleet, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await fleet.wait_changed(fleet.version)


async def read(fleet: NodeFleet) -> bytes:
    async with fleet.worker(KEY).send("POST", "/v1/x", {}, b"{}") as answer:
        return b"".join([chunk async for chunk in answer.chunks()])


async def test_a_connection_that_is_cut_is_opened_once_for_all(
    peer: Peer, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    never = asyncio.Event()

    async def goes_on(path: str, body: bytes) -> AsyncIterator[bytes]:
        yield b"data: begun\n\n"
        await never.wait()

    peer.node.answers = goes_on
    async with asyncssh_server([user_key]) as server, peer.held(server.node(identity)) as fleet:
        requests = [asyncio.create_task(read(fleet)) for _ in range(8)]
        async with asyncio.timeout(PATIENCE_S):
            while len(peer.node.requests) < 8:
                await asyncio.sleep(0.01)
        server.connections[0].abort()
        for request in requests:
            with pytest.raises(ConnectError):
                await request
            fleet.failed(KEY)
        await seen(fleet, lambda: fleet.nodes[0].state is NodeState.UP and bool(fleet.nodes[0].workers))
        assert len(server.connections) == 2


async def test_a_network_that_stalls_is_noticed_in_time_and_recovered_from(
    peer: Peer, user_key: asyncssh.SSHKey, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.node_link.HOLD_SILENCE_S", 0.9)
    async with (
        asyncssh_server([user_key]) as server,
        ChaosProxy(("127.0.0.1", server.port)) as proxy,
        peer.held(server.node(identity, port=proxy.port)) as fleet,
    ):
        began = asyncio.get_running_loop().time()
        proxy.strike("stall")
        await seen(fleet, lambda: fleet.nodes[0].state is not NodeState.UP)
        assert asyncio.get_running_loop().time() - began < PATIENCE_S / 2
        await seen(fleet, lambda: fleet.nodes[0].state is NodeState.UP)


async def test_a_node_without_a_hive_is_noticed_to_be_lost_as_well(
    peer: Peer, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.node_link.HOLD_SILENCE_S", 0.3)
    async with asyncssh_server([user_key]) as server, ChaosProxy(("127.0.0.1", server.port)) as proxy:
        entry = server.node(identity, port=proxy.port)
        context = Context(Settings(home=tmp_path), Inventory({"gpu1": entry}), peer.open_registry, "k" * 16)
        async with NodeFleet(context) as fleet:
            await seen(fleet, lambda: fleet.nodes[0].state is NodeState.UP)
            proxy.strike("stall")
            await seen(fleet, lambda: fleet.nodes[0].state is not NodeState.UP)
            await seen(fleet, lambda: fleet.nodes[0].state is NodeState.UP)


@pytest.mark.parametrize("forbidden", [False, True], ids=["channels", "pipe"])
async def test_a_reader_that_stops_stops_the_worker(
    forbidden: bool, peer: Peer, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    written = 0

    async def floods(path: str, body: bytes) -> AsyncIterator[bytes]:
        nonlocal written
        for _ in range(FLOOD):
            yield b"x" * 2**14
            written += 2**14

    peer.node.answers = floods
    async with (
        asyncssh_server([user_key], sockets=not forbidden) as server,
        peer.held(server.node(identity)) as fleet,
        fleet.worker(KEY).send("POST", "/v1/x", {}, b"{}") as answer,
    ):
        chunks = answer.chunks()
        begun = len(await anext(chunks))
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.1)
        assert written < MOST_IN_BETWEEN
        peer.node.answers = says_hello
        assert await read(fleet) == b"data: hello\n\n"  # another stream goes on as ever
        assert begun + sum([len(chunk) async for chunk in chunks]) == FLOOD * 2**14


async def many_streams(fleet: NodeFleet, node: ScriptedNode, number: int) -> None:
    """All are open at once before the first is over."""
    all_there = asyncio.Event()

    async def waits(path: str, body: bytes) -> AsyncIterator[bytes]:
        yield b"data: begun\n\n"
        if len(node.requests) == number:
            all_there.set()
        while not all_there.is_set():
            yield b": waiting\n\n"
            await asyncio.wait([there], timeout=1.0)
        yield b"data: " + body + b"\n\n"

    node.answers = waits

    async def one(which: int) -> None:
        body = str(which).encode()
        async with fleet.worker(KEY).send("POST", "/v1/x", {}, body) as answer:
            got = b"".join([chunk async for chunk in answer.chunks()])
        assert got.replace(b": waiting\n\n", b"") == b"data: begun\n\ndata: " + body + b"\n\n"

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        there = group.create_task(all_there.wait())
        for which in range(number):
            group.create_task(one(which))


@needs_openssh
async def test_sshds_ten_sessions_are_no_limit_for_streams_over_the_pipe(
    peer: Peer, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    settings = ("AllowStreamLocalForwarding no", "MaxSessions 10")
    async with (
        openssh_server(peer.folder, user_key, *settings) as server,
        peer.held(server.node(identity)) as fleet,
    ):
        await many_streams(fleet, peer.node, 40)


@needs_openssh
async def test_two_hundred_streams_go_over_one_connection_where_forwarding_is_allowed(
    peer: Peer, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with (
        openssh_server(peer.folder, user_key, "MaxSessions 10") as server,
        peer.held(server.node(identity)) as fleet,
    ):
        await many_streams(fleet, peer.node, 200)
