"""Jump hosts and proxy commands with real servers; `test_login` has the order of hops and who is checked."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConnectError, RefusedError
from rbee.base.events import Emit, Event, Retry
from rbee.infer.answer import Endpoint, answer
from rbee.infer.partial import PartialAnswer
from rbee.inventory import Node
from rbee.node.hive_client import WorkerClient
from rbee.node.session import open_connection
from rbee.transport.connection import Connection, SocketAccess
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.proxy import ChaosProxy
from tests.ssh import scripted_worker
from tests.ssh.conftest import Connect, write_key
from tests.ssh.peers import PIPE, everything_works
from tests.ssh.servers import SSHD, openssh_server
from tests.ssh.test_reconnecting import ANSWER, PATIENCE, Reader, ask, nothing_known, running_peer, striking

pytestmark = pytest.mark.skipif(SSHD is None, reason="OpenSSH's sshd is not installed")


async def test_a_jump_host_with_a_key_of_its_own(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path
) -> None:
    jump_key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    (tmp_path / "jump").mkdir()
    async with (
        openssh_server(tmp_path / "jump", jump_key, "MaxSessions 0") as jump,  # a bastion that only passes on
        openssh_server(tmp_path, user_key, "MaxSessions 1") as last,
    ):
        bastion = jump.node(write_key(tmp_path / "id_jump", jump_key), name="bastion")
        node = last.node(identity, jump=("bastion",))
        async with connect(node, bastion, access=SocketAccess(pipe_command=PIPE)) as connection:
            await everything_works(connection, tmp_path)


@pytest.mark.parametrize("setting", ["AllowTcpForwarding no", "DisableForwarding yes", "PermitOpen none"])
async def test_a_jump_host_that_forbids_it_is_named_and_not_asked_again(
    setting: str,
    connect: Connect,
    user_key: asyncssh.SSHKey,
    identity: Path,
    tmp_path: Path,
    events: list[Event],
) -> None:
    async with openssh_server(tmp_path, user_key, setting) as jump:
        node = jump.node(identity, jump=("bastion",))
        with pytest.raises(RefusedError, match="the jump host bastion does not forward connections to gpu1") as caught:
            async with connect(node, jump.node(identity, name="bastion")):
                pass
    assert caught.value.code is ErrorCode.AUTH_FAILED
    assert "AllowTcpForwarding" in caught.value.hint
    assert events == []


async def test_a_jump_host_whose_key_changed_is_named(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, tmp_path: Path, events: list[Event]
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").get_fingerprint()
    async with openssh_server(tmp_path, user_key) as jump:
        node = jump.node(identity, jump=("bastion",))
        with pytest.raises(RefusedError, match="the host key of bastion") as caught:
            async with connect(node, jump.node(identity, name="bastion", host_key=other)):
                pass
    assert caught.value.code is ErrorCode.HOST_KEY_MISMATCH
    assert events == []


async def test_an_answer_survives_the_end_of_its_jump_host(
    tmp_path: Path, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    (tmp_path / "jump").mkdir()
    async with (
        openssh_server(tmp_path / "jump", user_key) as jump,
        running_peer(tmp_path, user_key, identity) as peer,
        ChaosProxy(("127.0.0.1", jump.port)) as proxy,
    ):
        bastion = jump.node(identity, name="bastion", port=proxy.port)
        node = peer.server.node(identity, jump=("bastion",))

        def opener(access: SocketAccess, emit: Emit) -> AbstractAsyncContextManager[Connection]:
            return open_connection(node, {"bastion": bastion}, emit=emit, keeper_id="k1", access=access)

        reader = Reader(striking(proxy, "cut", 40))
        access = SocketAccess(pipe_command=PIPE)
        async with ReconnectingConnection(node.name, opener, reader, access) as connection:
            client = WorkerClient(connection, str(peer.socket), worker_id=scripted_worker.WORKER_ID, keeper_id="k1")
            endpoint = Endpoint(client, connection, explain=nothing_known, patience=PATIENCE)
            result = await answer(endpoint, ask(), PartialAnswer(tmp_path / "answer.txt"), emit=reader)
        reader.has_all_of(ANSWER, result)
        assert reader.notices == ["lost the connection to gpu1, reconnecting", "reconnected to gpu1"]


# --- proxy commands -----------------------------------------------------------------------------------------------

#: Passes on between stdin, stdout and a port, as `nc` does.
_NETCAT = """
import os, socket, sys, threading
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def back():
    while data := peer.recv(65536):
        os.write(1, data)
    os._exit(0)
threading.Thread(target=back).start()
while data := os.read(0, 65536):
    peer.sendall(data)
os._exit(0)
"""


def _proxied(home: Path, command: str, server_port: int = 1, user: str = "bee") -> Node:
    config = f"Host far\n  HostName 127.0.0.1\n  Port {server_port}\n  User {user}\n  ProxyCommand {command}\n"
    (home / ".ssh" / "config").write_text(config)
    return Node("gpu1", host="far")


async def test_a_proxy_command_is_the_way(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "netcat.py").write_text(_NETCAT)
    async with openssh_server(tmp_path, user_key) as server:
        node = _proxied(home, f"{sys.executable} {tmp_path}/netcat.py %h %p", server.port, server.user)
        pinned = Node(node.name, host=node.host, identity_file=identity, host_key=server.host_keys[0])
        async with connect(pinned, access=SocketAccess(pipe_command=PIPE)) as connection:
            await everything_works(connection, tmp_path)


async def test_a_proxy_command_that_fails_is_named(connect: Connect, home: Path, events: list[Event]) -> None:
    with pytest.raises(ConnectError, match="cannot be reached") as caught:
        async with connect(_proxied(home, "/nowhere/corkscrew proxy %h %p")):
            pass
    assert "ProxyCommand" in caught.value.details["reason"]
    assert "/nowhere/corkscrew proxy 127.0.0.1 1" in caught.value.hint
    assert len([event for event in events if isinstance(event, Retry)]) == 3


async def test_a_proxy_command_that_hangs_is_given_up_and_ended(
    connect: Connect, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    monkeypatch.setattr("rbee.transport.ssh.handshake.SSH_CONNECT_S", 0.5)
    pids = tmp_path / "pids"
    started: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        while not started:  # a busy machine starts none in that time
            events.clear()
            with pytest.raises(ConnectError, match="cannot be reached") as caught:
                async with connect(_proxied(home, f"sh -c 'echo $$ >>{pids}; exec sleep 600'")):
                    pass
            assert caught.value.details["reason"] == "no answer in time"
            assert len([event for event in events if isinstance(event, Retry)]) == 3
            started = [int(pid) for pid in pids.read_text().split()] if pids.exists() else []
    async with asyncio.timeout(PATIENCE_S):
        while any(Path(f"/proc/{pid}").exists() for pid in started):
            await asyncio.sleep(0.02)
