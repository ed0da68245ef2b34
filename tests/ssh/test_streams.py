"""Streams to sockets on a node: over a channel where sshd allows it, over the pipe where it does not."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.transport.connection import Connection, SocketAccess
from rbee.transport.forwarding import forwarding_works
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.ssh.conftest import Connect
from tests.ssh.peers import PIPE, exactly, shouting
from tests.ssh.servers import SSHD, asyncssh_server, openssh_server

needs_openssh = pytest.mark.skipif(SSHD is None, reason="OpenSSH's sshd is not installed")


async def _talk(connection: Connection, socket: str) -> None:
    """Two streams at once, small and large messages."""
    streams = [await connection.open_stream(socket), await connection.open_stream(socket)]
    for stream in streams:
        await stream.write(b"hello")
    assert [await exactly(stream, 5) for stream in streams] == [b"HELLO", b"HELLO"]
    large = bytes(range(97, 123)) * 40_000
    writing = asyncio.create_task(streams[0].write(large))
    assert await exactly(streams[0], len(large)) == large.upper()
    await writing
    for stream in streams:
        await stream.aclose()
        await stream.aclose()


async def _gone(connection: Connection, socket: str) -> None:
    with pytest.raises(NodeError) as caught:
        await connection.open_stream(socket)
    assert caught.value.code is ErrorCode.WORKER_GONE


async def test_streams_go_over_channels(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        asyncssh_server([user_key]) as server,
        shouting(tmp_path / "s.sock") as socket,
        connect(server.node(identity)) as connection,
    ):
        await _talk(connection, socket)
        assert connection.access.transport == "forward"
        await _gone(connection, str(tmp_path / "none.sock"))


async def test_streams_go_over_the_pipe_where_forwarding_is_forbidden(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        asyncssh_server([user_key], sockets=False) as server,
        shouting(tmp_path / "s.sock") as socket,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        await _talk(connection, socket)
        assert connection.access.transport == "pipe"
        await _gone(connection, str(tmp_path / "none.sock"))


async def test_without_forwarding_and_without_a_pipe_there_are_no_streams(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key], sockets=False) as server, connect(server.node(identity)) as connection:
        with pytest.raises(NodeError) as caught:
            await connection.open_stream("/run/hive.sock")
    assert caught.value.code is ErrorCode.BOOTSTRAP_FAILED
    assert "AllowStreamLocalForwarding" in caught.value.hint


async def test_a_pipe_whose_payload_is_gone_counts_as_a_worker_that_is_gone(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key], sockets=False) as server:
        for command in ((sys.executable, "-I", "/nowhere/payload.zip", "pipe"), ("/nowhere/python", "pipe")):
            async with connect(server.node(identity), access=SocketAccess(pipe_command=command)) as connection:
                await _gone(connection, "/run/hive.sock")


@pytest.mark.parametrize("sockets", [True, False])
async def test_a_stream_whose_connection_drops_is_lost(
    sockets: bool, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        asyncssh_server([user_key], sockets=sockets) as server,
        shouting(tmp_path / "s.sock") as socket,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        stream = await connection.open_stream(socket)
        await stream.write(b"hello")
        assert await exactly(stream, 5) == b"HELLO"
        server.connections[-1].abort()
        with pytest.raises(ConnectError) as caught:
            await stream.read(100)
        assert caught.value.code is ErrorCode.CONNECTION_LOST
        await stream.aclose()


async def test_the_end_of_the_servers_side_is_an_end_and_no_error(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(100))
        writer.close()

    listener = await asyncio.start_unix_server(serve, tmp_path / "s.sock")
    for sockets in (True, False):
        async with (
            asyncssh_server([user_key], sockets=sockets) as server,
            connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
        ):
            stream = await connection.open_stream(str(tmp_path / "s.sock"))
            await stream.write(b"bye")
            assert await exactly(stream, 3) == b"bye"
            assert await stream.read(100) == b""
            await stream.aclose()
    listener.close()
    await listener.wait_closed()


# --- OpenSSH ------------------------------------------------------------------------------------------------------


@needs_openssh
async def test_openssh_with_forwarding(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        openssh_server(tmp_path, user_key) as server,
        shouting(tmp_path / "s.sock") as socket,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        assert (await connection.run("echo in; exit 4")).status == 4
        await _talk(connection, socket)
        assert connection.access.transport == "forward"
        await _gone(connection, str(tmp_path / "none.sock"))
        assert connection.access.transport == "forward"


@needs_openssh
async def test_openssh_where_a_missing_socket_is_asked_for_first(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with openssh_server(tmp_path, user_key) as server, connect(server.node(identity)) as connection:
        await _gone(connection, str(tmp_path / "none.sock"))
        connection.use_pipe(PIPE)
        await _gone(connection, str(tmp_path / "none.sock"))
        assert connection.access.transport == "forward"
        async with shouting(tmp_path / "s.sock") as socket:
            await _talk(connection, socket)
        assert connection.access.transport == "forward"


@needs_openssh
@pytest.mark.parametrize("setting", ["AllowStreamLocalForwarding no", "DisableForwarding yes"])
async def test_openssh_without_forwarding(
    setting: str, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    async with (
        openssh_server(tmp_path, user_key, setting) as server,
        shouting(tmp_path / "s.sock") as socket,
        connect(server.node(identity), access=SocketAccess(pipe_command=PIPE)) as connection,
    ):
        await _talk(connection, socket)
        assert connection.access.transport == "pipe"
        await _gone(connection, str(tmp_path / "none.sock"))


@needs_openssh
@pytest.mark.parametrize(("setting", "works"), [("yes", True), ("no", False), ("remote", False)])
@pytest.mark.parametrize("pipe", [PIPE, None])
async def test_whether_forwarding_works_is_found_out(
    pipe: tuple[str, ...] | None,
    setting: str,
    works: bool,
    connect: Connect,
    user_key: asyncssh.SSHKey,
    identity: Path,
    tmp_path: Path,
) -> None:
    settings = (f"AllowStreamLocalForwarding {setting}", f"SetEnv TMPDIR={tmp_path}")
    async with (
        openssh_server(tmp_path, user_key, *settings) as server,
        connect(server.node(identity), access=SocketAccess(pipe_command=pipe)) as connection,
    ):
        assert await forwarding_works(connection, sys.executable) is works
        assert await forwarding_works(connection, "") is None
        assert await forwarding_works(connection, "/nowhere/python") is None
        async with asyncio.timeout(PATIENCE_S):
            while list(tmp_path.glob("tmp.*")):
                await asyncio.sleep(0.02)
    assert list(tmp_path.glob("tmp.*")) == []
