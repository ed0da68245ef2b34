"""A batch over two nodes behind a real sshd, one of which ends in the middle."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from rbee.base.settings import Settings
from rbee.batch.batch import batch
from rbee.batch.reading import Input
from rbee.batch.request import BatchRequest
from rbee.context import Context
from rbee.inventory import Inventory
from rbee.node.probe import Probe
from rbee.node.session import Attached, NodeSession
from rbee.registry import NodeFacts, Registry
from tests.doubles.hive import ScriptedNode, worker_info
from tests.patience import PATIENCE_S
from tests.ssh.peers import PIPE
from tests.ssh.servers import SSHD, openssh_server

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's sshd is not installed")

LINES = 120
IDS = {"gpu1": "a" * 16, "gpu2": "b" * 16}


class Peers:
    """Two nodes of one sshd, each with a worker that says a prompt back. served: by node, when it is to end."""

    def __init__(self, folder: Path, run_dir: str) -> None:
        self.folder = folder
        self.nodes: dict[str, ScriptedNode] = {}
        self.enough = asyncio.Event()
        for name in IDS:
            own = Path(run_dir, name)
            own.mkdir()
            self.nodes[name] = node = ScriptedNode(str(own))
            node.media_type = "application/json"
            node.answers = self.answers

    async def answers(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        assert path == "/v1/chat/completions"
        prompt = json.loads(body)["messages"][-1]["content"]
        if sum(len(self.nodes[name].requests) for name in IDS) >= LINES // 3 and self.nodes["gpu2"].requests:
            self.enough.set()
        await asyncio.sleep(0.005)
        yield json.dumps({"choices": [{"message": {"content": f"re: {prompt}"}}]}).encode()

    async def attach(self, session: NodeSession) -> Attached:
        session.connection.use_pipe(PIPE)
        node = self.nodes[session.node.name]
        probe = Probe(system="Linux", home="/h", run_dir=node.run_dir)
        attached = Attached(session.hive_at(node.run_dir), node.info, probe, 0.0, 0.0)
        session.remember(attached, python="/python", payload="/payload.zip")
        return attached

    def open_registry(self) -> Registry:
        return Registry.open(self.folder / "workers.db")

    async def live(self, name: str, until: asyncio.Event) -> None:
        node = self.nodes[name]
        await node.tell(worker_info(IDS[name], run_dir=node.run_dir))
        with self.open_registry() as registry:
            registry.remember_node(NodeFacts(name, "forward", "/h", node.run_dir, "/python", "/payload", ""))
        async with node.serve(IDS[name]):
            await until.wait()


async def test_lines_of_a_node_that_ends_are_answered_by_another(
    tmp_path: Path, user_key: asyncssh.SSHKey, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"p{number}"}) + "\n" for number in range(1, LINES + 1)))
    over = asyncio.Event()
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as run_dir:
        peers = Peers(tmp_path, run_dir)
        monkeypatch.setattr("rbee.setup.attach.attach", peers.attach)
        async with (
            asyncio.timeout(PATIENCE_S),
            openssh_server(tmp_path, user_key) as server,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(peers.live("gpu1", over))
            tasks.create_task(peers.live("gpu2", peers.enough))
            entries = {name: server.node(identity, name=name) for name in IDS}
            context = Context(Settings(home=tmp_path), Inventory(entries), peers.open_registry, "k" * 16)
            summary = await batch(context, BatchRequest(Input(source), out))
            over.set()
            peers.enough.set()
    assert (summary.done, summary.failed) == (LINES, 0)
    assert set(summary.by_node) == set(IDS)
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert [line["custom_id"] for line in lines] == [str(number) for number in range(1, LINES + 1)]
    texts = [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]
    assert texts == [f"re: p{number}" for number in range(1, LINES + 1)]
