"""A node behind a real sshd on loopback, without a container: its runtime is this Python, its home a folder of ours."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh
import psutil

from rbee.base.settings import Settings, keeper_id
from rbee.context import Context
from rbee.fleet.hives import stop_hive
from rbee.inventory import Inventory, Node, load
from rbee.node.probe import parse, script
from rbee.registry import Registry
from rbee.setup.runtime import Runtime
from rbee.setup.wheels.cache import WheelCache
from tests.proxy import ChaosProxy, Fault
from tests.ssh.servers import openssh_server

#: Commands of processes that stay for as long as a worker does.
_STAYS = frozenset({"hive", "worker", "render"})


@dataclass(frozen=True, slots=True)
class Loopback:
    """A keeper and its node. `direct` goes straight to it, `spoilt` through a proxy; both are the same machine.

    home: the keeper's. node_home: rbee's on the node. sshd: the listening one, whose children are the sessions.
    """

    context: Context
    home: Path
    node_home: Path
    sshd: psutil.Process

    @property
    def direct(self) -> Node:
        return self.context.inventory.node("direct")

    @property
    def spoilt(self) -> Node:
        return self.context.inventory.node("spoilt")

    def sessions(self) -> list[psutil.Process]:
        """sshd's children: connections, and what runs in their channels."""
        return [child for child in self.sshd.children(recursive=True) if not self._is_node(child)]

    def node_processes(self) -> list[psutil.Process]:
        """The hive and its workers and helpers."""
        return [process for process in psutil.process_iter() if self._is_node(process)]

    def has_work(self) -> bool:
        """Whether anything runs there that ends by itself: a checksum that the hive began, the pipe of a connection
        that is gone."""
        return any(_STAYS.isdisjoint(self._words(process)) for process in self.node_processes())

    def _is_node(self, process: psutil.Process) -> bool:
        return f"{self.node_home}/payloads/" in " ".join(self._words(process))

    def _words(self, process: psutil.Process) -> list[str]:
        try:
            words: list[str] = process.cmdline()
        except psutil.Error:
            return []
        return words


@asynccontextmanager
async def loopback(folder: Path, fault: Callable[[], Fault] = Fault) -> AsyncIterator[Loopback]:
    """A node that is set up but runs nothing yet; stopped at the end. folder: empty, on a disk that executes.

    fault: what becomes of every other connection to `spoilt`, beginning with the first.
    """
    home, node_home = folder / "keeper", folder / "node"
    for path in (home, node_home, folder / "sshd"):
        path.mkdir(mode=0o700)
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(folder / "id")
    (folder / "id").chmod(0o600)
    async with (
        openssh_server(folder / "sshd", key, "MaxStartups 100") as server,
        ChaosProxy(("127.0.0.1", server.port), lambda number: Fault() if number % 2 else fault()) as proxy,
    ):
        settings = Settings(home=home)
        settings.inventory_path.write_text(
            "".join(
                f'[nodes.{name}]\nhost = "127.0.0.1"\nport = {port}\nuser = "{server.user}"\nhome = "{node_home}"\n'
                f'identity_file = "{folder / "id"}"\nhost_key = "{server.host_keys[0]}"\nbackend = "cpu"\n\n'
                for name, port in (("direct", server.port), ("spoilt", proxy.port))
            )
        )
        inventory = load(settings.inventory_path, settings)
        await give_runtime(inventory.node("direct"), node_home, settings)
        node = Loopback(context_of(settings, inventory), home, node_home, _sshd(folder / "sshd"))
        try:
            yield node
        finally:
            await _stop(node)


def context_of(settings: Settings, inventory: Inventory) -> Context:
    """What use cases are handed, with nobody to ask."""
    return Context(
        settings=settings,
        inventory=inventory,
        open_registry=lambda: Registry.open(settings.registry_path),
        keeper_id=keeper_id(settings),
    )


async def give_runtime(node: Node, node_home: Path, settings: Settings, shell: str = "") -> None:
    """This Python, or a line for the shell in its place, under the name of the runtime that a bootstrap would make."""
    said = await asyncio.create_subprocess_exec(
        "/bin/sh", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await said.communicate(script(str(node_home)).encode())
    runtime = Runtime.choose(parse(output), node, WheelCache.of(settings))
    python = node_home / "runtimes" / runtime.key / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n" + (shell or f'exec "{sys.executable}" "$@"') + "\n")
    python.chmod(0o755)


def _sshd(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "sshd.pid").read_text()))


async def _stop(node: Loopback) -> None:
    """End the hive as a user would, and remove its runtime folder, which lies outside of ours."""
    with node.context.open_registry() as registry:
        facts = registry.node_facts("direct")
    try:
        await stop_hive(node.context, node.direct, drain=False)
    finally:
        for process in node.node_processes():
            process.kill()
        if facts:
            shutil.rmtree(facts.run_dir, ignore_errors=True)
