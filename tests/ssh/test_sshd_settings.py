"""OpenSSH's sshd with settings that get in the way: it works nevertheless, or what is in the way is said."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError, NodeError, RefusedError
from rbee.base.events import Event, Retry
from rbee.inventory import Node
from rbee.transport.connection import SocketAccess
from rbee.transport.forwarding import forwarding_works
from rbee_remote.protocol import ErrorCode
from tests.ssh.conftest import Connect, write_key
from tests.ssh.peers import PIPE, everything_works
from tests.ssh.servers import SSHD, openssh_server

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's sshd is not installed")


@pytest.mark.parametrize(
    ("settings", "transport"),
    [
        (("AllowTcpForwarding no",), "any"),
        (("AllowStreamLocalForwarding no",), "pipe"),
        (("DisableForwarding yes", "PermitTTY no", "AcceptEnv none"), "pipe"),
        (("ClientAliveInterval 1", "ClientAliveCountMax 3", "LoginGraceTime 30"), "forward"),
        (("MaxSessions 1",), "forward"),
        (("MaxSessions 1", "DisableForwarding yes"), "pipe"),
        (("Match LocalAddress 127.0.0.1", "AllowStreamLocalForwarding no", "PermitTTY no"), "pipe"),
        (("ForceCommand eval $SSH_ORIGINAL_COMMAND",), "forward"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, tuple) else value,
)
async def test_settings_that_restrict_are_coped_with(
    settings: tuple[str, ...],
    transport: str,
    connect: Connect,
    user_key: asyncssh.SSHKey,
    identity: Path,
    tmp_path: Path,
) -> None:
    async with (
        openssh_server(tmp_path, user_key, *settings) as server,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        await everything_works(connection, tmp_path)
        assert transport in (connection.access.transport, "any")
        assert await forwarding_works(connection, sys.executable) is (connection.access.transport == "forward")


async def test_a_server_that_opens_no_session_is_refused(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path, events: list[Event]
) -> None:
    async with (
        openssh_server(tmp_path, user_key, "MaxSessions 0") as server,
        connect(server.node(identity)) as connection,
    ):
        with pytest.raises(NodeError) as caught:
            await connection.run("echo in")
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert "MaxSessions" in caught.value.hint
    assert caught.value.details["connections"] == 2
    assert events == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo Backups only.", "Backups only."),
        ("/nowhere/rrsync /backup", "rrsync"),
        ("internal-sftp", ""),
    ],
)
async def test_a_forced_command_is_refused_with_what_it_says(
    command: str, said: str, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        openssh_server(tmp_path, user_key, f"ForceCommand {command}") as server,
        connect(server.node(identity)) as connection,
    ):
        with pytest.raises(NodeError) as caught:
            await connection.run("echo in")
    assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
    assert "ForceCommand" in caught.value.hint
    assert said in caught.value.details["said"]


async def test_a_forced_command_that_echoes_is_given_up_in_time(
    connect: Connect,
    user_key: asyncssh.SSHKey,
    identity: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rbee.transport.script.SHELL_START_S", 0.5)
    async with (
        openssh_server(tmp_path, user_key, "ForceCommand cat") as server,
        connect(server.node(identity), access=SocketAccess("pipe", PIPE)) as connection,
    ):
        for attempt in (connection.run("echo in"), connection.open_stream("/nowhere/s.sock")):
            with pytest.raises(ConnectError) as caught:
                await attempt
            assert caught.value.code is ErrorCode.CONNECTION_TIMEOUT
            assert "ForceCommand" in caught.value.hint


async def test_a_server_with_too_many_at_the_door_lets_everybody_in_after_a_while(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path, events: list[Event]
) -> None:
    """MaxStartups 2:50:5 turns away half of those who come while two log in, and all while five do."""

    async def one() -> bytes:
        async with connect(server.node(identity)) as connection:
            return (await connection.run("echo in")).stdout

    async with openssh_server(tmp_path, user_key, "MaxStartups 2:50:5") as server:
        assert await asyncio.gather(*(one() for _ in range(8))) == [b"in\n"] * 8
    turned_away = [event for event in events if isinstance(event, Retry)]
    assert turned_away
    assert all("closed the connection before" in event.reason for event in turned_away)


async def test_a_server_that_always_hangs_up_is_given_more_tries_and_named_so(
    connect: Connect, identity: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.transport.ssh.SSH_BUSY_DELAYS_S", (0.01,) * 5)

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"Not allowed at this time\r\n")
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError, match="closes connections before login") as caught:
            async with connect(Node("gpu1", host="127.0.0.1", port=port, identity_file=identity)):
                pass
    assert "MaxStartups" in caught.value.hint
    assert "PerSourcePenalties" in caught.value.hint
    assert len(events) == 6


async def test_who_is_refused_for_his_key_does_not_come_again(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path, events: list[Event]
) -> None:
    wrong = write_key(tmp_path / "wrong", asyncssh.generate_private_key("ssh-ed25519"))
    async with openssh_server(tmp_path, user_key, "MaxAuthTries 1") as server:
        with pytest.raises(RefusedError) as caught:
            async with connect(server.node(wrong)):
                pass
    assert caught.value.code is ErrorCode.AUTH_FAILED
    assert caught.value.details["keys"] == [str(wrong)]
    assert events == []


@pytest.mark.parametrize("size", [1000, 200_000])
async def test_a_banner_is_no_obstacle(
    size: int, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    (tmp_path / "banner").write_bytes(b"Authorised use only. \xff\n" * (size // 23))
    async with (
        openssh_server(tmp_path, user_key, f"Banner {tmp_path}/banner") as server,
        connect(server.node(identity)) as connection,
    ):
        assert (await connection.run("echo in")).stdout == b"in\n"
