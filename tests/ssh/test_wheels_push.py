"""Wheels pushed to another machine: by OpenSSH's sshd, several at once, and where it does not go."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import NodeError
from rbee.base.events import Event
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.fleet import wheels
from rbee.inventory import Inventory, Node
from rbee.registry import Registry
from rbee.setup.index.publishing import Offer, Pushed
from tests.patience import PATIENCE_S
from tests.ssh.conftest import write_key
from tests.ssh.servers import SSHD, asyncssh_server, openssh_server
from tests.unit.setup.index.test_publishing import is_whole, offer

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is not installed")


async def push(
    tmp_path: Path, node: Node, folder: Path | str, version: str, one: Offer | None = None
) -> tuple[Pushed, list[Event]]:
    """From a keeper of its own."""
    settings = Settings(tmp_path / f"keeper-{version}")
    events: list[Event] = []
    context = Context(
        settings,
        Inventory({node.name: node}),
        lambda: Registry.open(settings.registry_path),
        version.replace(".", "0").ljust(16, "0"),
        emit=events.append,
    )
    one = one or offer(tmp_path / version, bytes(3 * 2**20), version=version)
    return await wheels.push(context, node, str(folder), [one], where=f"gpu1:{folder}", signer=None), events


async def test_several_push_to_one_machine_at_once(user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path) -> None:
    there = tmp_path / "it's there"
    async with openssh_server(tmp_path, user_key) as server:
        node = server.node(identity)
        one = offer(tmp_path / "first", version="1.0")
        first = push(tmp_path, node, there, "1.0", one)
        results = await asyncio.gather(first, *(push(tmp_path, node, there, version) for version in ("2.0", "3.0")))
        again, _ = await push(tmp_path, node, there, "1.0", one)
    assert [len(pushed.added) for pushed, _ in results] == [1, 1, 1]
    assert (again.added, len(again.unchanged), again.total) == ((), 1, 3)
    assert is_whole(there)


async def test_a_folder_below_the_home_of_a_login(user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path) -> None:
    async with asyncssh_server([user_key], env={"HOME": str(tmp_path / "bee")}) as server:
        pushed, _ = await push(tmp_path, server.node(identity), "~/a b", "1.0")
    assert pushed.root == str(tmp_path / "bee" / "a b")
    assert is_whole(tmp_path / "bee" / "a b")


async def test_a_folder_that_cannot_be_made_there(user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path) -> None:
    async with asyncssh_server([user_key]) as server:
        with pytest.raises(NodeError, match=r"^gpu1:/proc/none cannot be written: ") as caught:
            await push(tmp_path, server.node(identity), "/proc/none", "1.0")
    assert caught.value.exit_status == 5


async def test_the_command_line_over_ssh(user_key: asyncssh.SSHKey, tmp_path: Path, home: Path) -> None:
    """To a node of the inventory and to a host that only known_hosts knows, with what is in a cache."""
    write_key(home / ".ssh/id_ed25519", user_key)
    cache = tmp_path / "cache"
    make = (
        "from pathlib import Path; from rbee.setup.wheels.cache import WheelCache;"
        "from rbee.setup.base import requirements;"
        "from tests.unit.setup.tiny_packages import write_wheel;"
        f"root = Path({str(tmp_path)!r});"
        "wheel = write_wheel(root / 'built', 'llama_cpp_python', {'llama_cpp.py': b''},"
        " version=requirements.llama().version, tag='py3-none-linux_x86_64');"
        "WheelCache(root / 'cache', root).add_wheel(wheel, 'cpu')"
    )
    subprocess.run([sys.executable, "-c", make], check=True, timeout=PATIENCE_S)
    async with openssh_server(tmp_path, user_key) as server:
        node = server.node(None)
        (tmp_path / "nodes.toml").write_text(
            f'[nodes.gpu1]\nhost = "127.0.0.1"\nport = {node.port}\nhost_key = "{node.host_key}"\n'
        )
        key = (tmp_path / "host_key").read_bytes()
        public = asyncssh.import_private_key(key).export_public_key().decode()
        (home / ".ssh/config").write_text(f"Host box\n  HostName 127.0.0.1\n  Port {server.port}\n")
        (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{server.port} {public}")
        env = {**os.environ, "RBEE_HOME": str(tmp_path / "rbee"), "RBEE_WHEEL_CACHE": str(cache)}
        results = []
        for target in (f"gpu1:{tmp_path}/there", f"box:{tmp_path}/there"):
            words = [sys.executable, "-m", "rbee", "wheels", "push", target, "--json", "-i", f"{tmp_path}/nodes.toml"]
            process = await asyncio.create_subprocess_exec(*words, env=env, stdout=subprocess.PIPE)
            out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
            assert process.returncode == 0, out
            results.append(json.loads(out.splitlines()[-1]))
    assert [(len(each["added"]), len(each["unchanged"])) for each in results] == [(1, 0), (0, 1)]
    assert results[0]["wheel_indexes"][0]["url"] == "https://FILL.IN/THE/ADDRESS"
    assert is_whole(tmp_path / "there")
