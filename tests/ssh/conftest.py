"""A user with a home, keys and no agent; and that nothing stays open when a test is over."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from rbee.base.events import Event
from rbee.inventory import Node
from rbee.node.session import open_connection
from rbee.transport.connection import Connection
from tests.patience import PATIENCE_S

LEAK_PATIENCE_S = PATIENCE_S


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home: ~/.ssh is empty, no agent runs, and the machine's own configuration does not count."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.setattr("rbee.transport.ssh.client_config.SYSTEM_CONFIG", tmp_path / "ssh_config")
    return folder


@pytest.fixture
def user_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@pytest.fixture
def identity(tmp_path: Path, user_key: asyncssh.SSHKey) -> Path:
    """The file of `user_key`."""
    return write_key(tmp_path / "id_user", user_key)


@pytest.fixture
def events() -> list[Event]:
    """What was reported by connections of `connect`."""
    return []


Connect = Callable[..., AbstractAsyncContextManager[Connection]]


@pytest.fixture
def connect(events: list[Event]) -> Connect:
    """Opens a connection to a node as a use case would; `nodes` are the rest of the inventory."""

    def opener(node: Node, *nodes: Node, **options: object) -> AbstractAsyncContextManager[Connection]:
        inventory = {each.name: each for each in (node, *nodes)}
        return open_connection(node, inventory, emit=events.append, keeper_id="k1", **options)  # type: ignore[arg-type]

    return opener


@pytest.fixture(autouse=True)
async def nothing_left() -> AsyncIterator[None]:
    """No task and no file descriptor outlives a test."""
    tasks, targets = _tasks(), _targets()
    yield
    gc.collect()
    deadline = asyncio.get_running_loop().time() + LEAK_PATIENCE_S
    while (_tasks() - tasks or _targets() - targets) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.02)
    assert _tasks() - tasks == set()
    assert _targets() - targets == set()


def _tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def _targets() -> set[tuple[str, str]]:
    """Open descriptors and what they stand for."""
    targets = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            targets.add((entry.name, str(entry.readlink())))
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
    return targets


def write_key(path: Path, key: asyncssh.SSHKey, passphrase: str | None = None) -> Path:
    key.write_private_key(path, passphrase=passphrase, rounds=50)
    path.chmod(0o600)
    return path
