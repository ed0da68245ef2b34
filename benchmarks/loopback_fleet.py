"""Nodes on this machine behind one real sshd, each with a home, a hive and a worker of its own: no container, and no
runtime to be made, since that is this Python."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncssh

from rbee.base.settings import Settings
from rbee.inventory import load
from tests.ssh.servers import openssh_server
from tests.testbed.cli import Rbee
from tests.testbed.loopback import give_runtime


def this_python(number: int) -> str:
    """The runtime of a node, as a line for the shell."""
    del number
    return f'exec "{sys.executable}" "$@"'


@asynccontextmanager
async def loopback_nodes(
    rbee: Rbee, count: int, *words: str, python: Callable[[int], str] = this_python, extra: str = ""
) -> AsyncIterator[tuple[str, ...]]:
    """Names of nodes, tagged "far", on each of which a worker is loaded. They lie in the keeper's home and end with it.

    words: options of the `infer` that loads it. python: by a node's number, what runs in place of its runtime's Python,
    a line for the shell. extra: more of the inventory.
    """
    folder = rbee.home / "sshd"
    folder.mkdir(mode=0o700)
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "id")
    (folder / "id").chmod(0o600)
    own = f"SetEnv HOME={rbee.user_home} XDG_RUNTIME_DIR={rbee.run_dir}"
    async with openssh_server(folder, key, own, "MaxStartups 100") as server:
        homes = {f"n{number}": rbee.home / "nodes" / str(number) for number in range(count)}
        nodes = "".join(
            f'[nodes.{name}]\nhost = "{server.host}"\nport = {server.port}\nuser = "{server.user}"\n'
            f'identity_file = "{folder / "id"}"\nhost_key = "{server.host_keys[0]}"\nhome = "{home}"\n'
            f'backend = "cpu"\ntags = ["far"]\n'
            for name, home in homes.items()
        )
        rbee.inventory.write_text(nodes + extra)
        inventory = load(rbee.inventory, settings := Settings(rbee.home))
        for number, (name, home) in enumerate(homes.items()):
            await give_runtime(inventory.node(name), home, settings, python(number))
            loading = ("infer", "--node", name, "--keep-alive", "never", "--max-tokens", "1", *words, "Hello")
            await asyncio.to_thread(rbee, *loading)
        yield tuple(homes)
