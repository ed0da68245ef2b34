"""dropbear as the server, as routers and boards have it: no channels to sockets in many versions, no SFTP."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import RefusedError
from rbee.base.events import Event
from rbee.transport.connection import SocketAccess
from rbee.transport.forwarding import forwarding_works
from tests.ssh.conftest import Connect, write_key
from tests.ssh.peers import PIPE, everything_works
from tests.ssh.servers import DROPBEAR, as_myself, dropbear_server, with_mounts


def _can_be_run() -> bool:
    """Whether it is there, and its list of users can be another one."""
    if DROPBEAR is None or shutil.which("unshare") is None:
        return False
    command = with_mounts('mount --bind /etc/passwd /etc/passwd && exec "$0" "$@"', *as_myself(), "true")
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_be_run(), reason="dropbear cannot be run here")


async def test_dropbear_is_as_good_as_any(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        dropbear_server(tmp_path, user_key) as server,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        await everything_works(connection, tmp_path)
        assert await forwarding_works(connection, sys.executable) is (connection.access.transport == "forward")


async def test_dropbear_without_forwarding(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        dropbear_server(tmp_path, user_key, "-j", "-k") as server,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        await everything_works(connection, tmp_path)
        assert connection.access.transport == "pipe"


async def test_a_key_that_dropbear_refuses_is_not_offered_again(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path, events: list[Event]
) -> None:
    wrong = write_key(tmp_path / "wrong", asyncssh.generate_private_key("ssh-ed25519"))
    async with dropbear_server(tmp_path, user_key) as server:
        with pytest.raises(RefusedError):
            async with connect(server.node(wrong)):
                pass
    assert events == []
