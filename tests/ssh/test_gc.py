"""`rbee gc` over SSH: from cron's bare surroundings, past nodes that hang, to nodes that rbee never set up."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from rbee.base.events import Event
from rbee.base.settings import Settings
from rbee.cleanup.actions import HERE
from rbee.cleanup.run import GcRequest, NodeReport, clean_up
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.registry import Registry
from tests.patience import PATIENCE_S
from tests.ssh.conftest import write_key
from tests.ssh.servers import asyncssh_server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "keeper")


def context(settings: Settings, *nodes: Node) -> Context:
    def open_registry() -> Registry:
        return Registry.open(settings.registry_path)

    return Context(settings, Inventory({node.name: node for node in nodes}), open_registry, "a" * 16)


async def test_a_node_that_was_never_set_up_is_left_as_it_is(
    settings: Settings, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    there = tmp_path / "node"
    there.mkdir()
    told: list[NodeReport] = []
    events: list[Event] = []
    async with asyncssh_server([user_key], env={"HOME": str(there), "XDG_RUNTIME_DIR": ""}) as server:
        await clean_up(
            replace(context(settings, server.node(identity)), emit=events.append),
            [server.node(identity)],
            GcRequest(),
            tell=told.append,
        )
        assert server.logins == ["bee"]
    assert [(report.node, report.outcomes, report.error) for report in told] == [("gpu1", [], None), (HERE, [], None)]
    assert list(there.iterdir()) == []
    assert events == []


async def test_a_node_that_hangs_delays_no_other(
    settings: Settings, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    told: asyncio.Queue[NodeReport] = asyncio.Queue()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with silent, asyncssh_server([user_key], env={"HOME": str(tmp_path)}) as server:
        port = silent.sockets[0].getsockname()[1]
        nodes = [server.node(identity, name="hangs", port=port), server.node(identity, name="works")]
        work = clean_up(context(settings, *nodes), nodes, GcRequest(), tell=told.put_nowait)
        task = asyncio.create_task(work)
        try:
            async with asyncio.timeout(PATIENCE_S):
                first = await told.get()
            assert (first.node, first.error) == ("works", None)
            assert not task.done()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            silent.close()


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-", "</dev/null"])
async def test_cron_gets_the_right_status_at_once_and_no_question(  # `env -i`: no HOME, no agent, and no terminal
    settings: Settings, user_key: asyncssh.SSHKey, tmp_path: Path, closed: str
) -> None:
    locked = write_key(tmp_path / "locked", user_key, "secret")
    inventory = tmp_path / "nodes.toml"
    async with asyncssh_server([user_key]) as server:
        inventory.write_text(
            f'[nodes.gpu1]\nhost = "127.0.0.1"\nport = {server.port}\nuser = "bee"\n'
            f'identity_file = "{locked}"\nhost_key = "{server.host_keys[0]}"\n'
        )
        child = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", f'exec "$@" {closed}', "sh"),
            *(sys.executable, "-m", "rbee", "gc", "--node", "gpu1", "--inventory", str(inventory)),
            env={"RBEE_HOME": str(settings.home)},
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                out, err = await child.communicate()
        finally:
            with suppress(ProcessLookupError):
                child.kill()
    assert (child.returncode, out) == (4, b"")
    assert len(server.connections) <= 1, "it tried again"
    if "2>" not in closed:
        assert err.decode().startswith("error: gpu1: ")
        assert err.count(b"\n") == 1
