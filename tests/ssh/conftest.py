"""A user with a home, keys and no agent; and that nothing stays open when a test is over."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import asyncssh
import pytest

from rbee.connection import Connection, open_connection
from rbee.events import Event
from rbee.inventory import Node

LEAK_PATIENCE_S = 5.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home: ~/.ssh is empty, and no agent runs."""
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
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
    tasks, descriptors = set(asyncio.all_tasks()), _descriptors()
    yield
    gc.collect()
    deadline = asyncio.get_running_loop().time() + LEAK_PATIENCE_S
    while asyncio.get_running_loop().time() < deadline:
        if asyncio.all_tasks() <= tasks and _descriptors() <= descriptors:
            break
        await asyncio.sleep(0.02)
    assert asyncio.all_tasks() <= tasks
    assert {fd: target for fd, target in _targets().items() if fd not in descriptors} == {}


def _targets() -> dict[str, str]:
    targets = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            targets[entry.name] = os.readlink(entry)
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
    return targets


def _descriptors() -> set[str]:
    return set(_targets())


def write_key(path: Path, key: asyncssh.SSHKey, passphrase: str | None = None) -> Path:
    key.write_private_key(path, passphrase=passphrase)
    path.chmod(0o600)
    return path
