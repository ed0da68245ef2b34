"""Connecting to unix sockets: that nobody listens, that somebody is behind, and who it is."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee_remote.system import unix_socket
from tests.patience import PATIENCE_S


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """With room for one in its queue."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen(0)
        yield listening


def fill(listener: socket.socket) -> list[socket.socket]:
    """Whoever comes now finds the queue full."""
    taken = []
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        taken.append(client)
        if client.connect_ex(listener.getsockname()) == errno.EAGAIN:
            return taken


def test_a_socket_without_a_file_or_a_listener_is_dead(tmp_path: Path, listener: socket.socket) -> None:
    assert unix_socket.listens(listener.getsockname())
    listener.close()
    assert not unix_socket.listens(str(tmp_path / "s"))
    assert not unix_socket.listens(str(tmp_path / "none"))


def test_who_is_behind_still_listens(listener: socket.socket) -> None:
    clients = fill(listener)
    assert unix_socket.listens(listener.getsockname())
    with pytest.raises(BlockingIOError):
        unix_socket.connect(listener.getsockname(), timeout_s=0.1)
    for client in clients:
        client.close()


def test_a_full_queue_is_waited_for(listener: socket.socket) -> None:
    clients = fill(listener)

    def accept_later() -> None:
        time.sleep(0.2)
        listener.accept()[0].close()

    thread = threading.Thread(target=accept_later)
    thread.start()
    unix_socket.connect(listener.getsockname(), timeout_s=PATIENCE_S).close()
    thread.join()
    for client in clients:
        client.close()


def test_a_neighbours_listener_is_refused(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 4242)
    with pytest.raises(ConnectionRefusedError, match="another user's process listens there"):
        unix_socket.connect(listener.getsockname(), timeout_s=PATIENCE_S)
