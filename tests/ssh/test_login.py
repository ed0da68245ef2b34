"""Who is let in, with which key; and what is said when nobody is."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import ConfigError, ConnectError, RefusedError
from rbee.base.events import Event, Retry
from rbee.inventory import Node
from rbee_remote.protocol import ErrorCode
from tests.patience import PATIENCE_S
from tests.ssh.conftest import Connect, write_key
from tests.ssh.servers import Server, asyncssh_server


async def _error(connect: Connect, node: Node, *nodes: Node, **options: object) -> Exception:
    with pytest.raises((RefusedError, ConnectError, ConfigError)) as caught:
        async with connect(node, *nodes, **options):
            pass
    return caught.value


async def test_a_wrong_key_is_refused_once_and_says_who_tried_what(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path, events: list[Event]
) -> None:
    wrong = write_key(tmp_path / "wrong", asyncssh.generate_private_key("ssh-ed25519"))
    async with asyncssh_server([user_key]) as server:
        error = await _error(connect, server.node(wrong))
    assert isinstance(error, RefusedError)
    assert error.code is ErrorCode.AUTH_FAILED
    assert error.details == {"user": "bee", "keys": [str(wrong)], "agent": 0}
    assert "ssh-copy-id" in error.hint
    assert events == []
    assert len(server.connections) == 1


async def test_an_encrypted_key_is_opened_with_the_passphrase(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path
) -> None:
    encrypted = write_key(tmp_path / "encrypted", user_key, "open sesame")
    answers = iter(["wrong", "open sesame"])
    prompts = []

    async def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    async with asyncssh_server([user_key]) as server, connect(server.node(encrypted), ask_passphrase=ask) as connection:
        assert (await connection.run("echo in")).stdout == b"in\n"
    assert prompts == [f"Passphrase for {encrypted}: "] * 2


async def test_a_passphrase_that_is_typed_too_late_is_used_on_the_next_try(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path, events: list[Event]
) -> None:
    """The server hangs up meanwhile, as sshd does after LoginGraceTime; nobody is asked twice."""
    encrypted = write_key(tmp_path / "encrypted", user_key, "open sesame")
    prompts = []
    async with asyncssh_server([user_key]) as server:

        async def ask(prompt: str) -> str:
            prompts.append(prompt)
            server.connections[-1].abort()
            return "open sesame"

        async with connect(server.node(encrypted), ask_passphrase=ask) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"
    assert len(prompts) == 1
    assert len(events) == 1


async def test_an_encrypted_key_that_nobody_opens_is_named(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path
) -> None:
    encrypted = write_key(tmp_path / "encrypted", user_key, "open sesame")
    async with asyncssh_server([user_key]) as server:
        error = await _error(connect, server.node(encrypted))
    assert isinstance(error, RefusedError)
    assert error.code is ErrorCode.AUTH_FAILED
    assert error.details["encrypted"] == [str(encrypted)]
    assert f"ssh-add {encrypted}" in error.hint


async def test_default_keys_are_used_where_none_is_named(
    connect: Connect, user_key: asyncssh.SSHKey, home: Path
) -> None:
    write_key(home / ".ssh" / "id_rsa", asyncssh.generate_private_key("ssh-rsa"))
    write_key(home / ".ssh" / "id_ecdsa", user_key)
    async with asyncssh_server([user_key]) as server, connect(server.node(None)) as connection:
        assert (await connection.run("echo in")).stdout == b"in\n"


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="no ssh-agent is installed")
async def test_the_agents_key_is_used(
    connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent"
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", str(path), stdout=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not path.exists():
                await asyncio.sleep(0.01)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        async with asyncssh.connect_agent(str(path)) as client:
            await client.add_keys([asyncssh.generate_private_key("ssh-ed25519"), user_key])
        encrypted = write_key(tmp_path / "encrypted", user_key, "open sesame")
        async with asyncssh_server([user_key]) as server:
            for identity in (None, encrypted):
                async with connect(server.node(identity)) as connection:
                    assert (await connection.run("echo in")).stdout == b"in\n"
    finally:
        agent.terminate()
        await agent.wait()


async def test_an_agent_that_does_not_listen_is_no_obstacle(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/nowhere/agent")
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        assert (await connection.run("echo in")).stdout == b"in\n"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.write_text("nonsense"), "cannot be used"),
        (lambda path: write_key(path, asyncssh.generate_private_key("ssh-ed25519")).chmod(0o644), "others can read"),
    ],
)
async def test_a_key_file_that_cannot_be_used_is_a_configuration_error(
    make: object, said: str, connect: Connect, user_key: asyncssh.SSHKey, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    make(path)  # type: ignore[operator]
    if path.exists() and said == "cannot be used":
        path.chmod(0o600)
    async with asyncssh_server([user_key]) as server:
        error = await _error(connect, server.node(path))
    assert isinstance(error, ConfigError)
    assert said in error.message


async def test_a_port_where_nobody_listens_is_tried_three_times(connect: Connect, events: list[Event]) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        node = Node("gpu1", host="127.0.0.1", port=reserved.getsockname()[1], host_key="SHA256:x")
        error = await _error(connect, node)
    assert isinstance(error, ConnectError)
    assert error.code is ErrorCode.CONNECTION_TIMEOUT
    assert error.exit_status == 3
    tries = [event for event in events if isinstance(event, Retry)]
    assert [(event.attempt, event.attempts, event.delay_s) for event in tries] == [
        (1, 3, 0.2),
        (2, 3, 0.4),
        (3, 3, None),
    ]
    assert all("refused" in event.reason for event in tries)


async def test_a_name_that_does_not_resolve_says_so(connect: Connect, events: list[Event]) -> None:
    error = await _error(connect, Node("gpu1", host="gpu1.invalid"))
    assert isinstance(error, ConnectError)
    assert "gpu1.invalid is not known" in error.details["reason"]
    assert len(events) == 3


async def test_a_server_that_says_nothing_is_given_up_in_time(
    connect: Connect, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.transport.ssh.handshake.SSH_CONNECT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = await _error(connect, Node("gpu1", host="127.0.0.1", port=silent.getsockname()[1]))
    assert isinstance(error, ConnectError)
    assert error.details["reason"] == "no answer in time"
    assert len(events) == 3


# --- jump hosts ---------------------------------------------------------------------------------------------------


def _bastion(server: Server, identity: Path, name: str = "bastion", **settings: object) -> Node:
    return server.node(identity, name=name, **settings)


async def test_a_chain_of_jump_hosts_is_gone_through_in_order(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with (
        asyncssh_server([user_key]) as first,
        asyncssh_server([user_key]) as second,
        asyncssh_server([user_key]) as last,
    ):
        nodes = [_bastion(first, identity, "first"), _bastion(second, identity, "second")]
        async with connect(last.node(identity, jump=("first", "second")), *nodes) as connection:
            assert (await connection.run("echo far")).stdout == b"far\n"
        assert first.tunnels == [("127.0.0.1", second.port)]
        assert second.tunnels == [("127.0.0.1", last.port)]
        assert last.tunnels == []


async def test_the_host_key_of_a_jump_host_is_checked_before_anybody_logs_in_there(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as jump, asyncssh_server([user_key]) as last:
        wrong = _bastion(jump, identity, host_key="SHA256:wrong")
        error = await _error(connect, last.node(identity, jump=("bastion",)), wrong)
    assert isinstance(error, RefusedError)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert "bastion" in error.message
    assert (jump.logins, last.connections) == ([], [])


async def test_the_host_key_behind_a_jump_host_is_checked_too(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    async with asyncssh_server([user_key]) as jump, asyncssh_server([user_key]) as last:
        node = last.node(identity, jump=("bastion",), host_key=None)
        error = await _error(connect, node, _bastion(jump, identity))
    assert isinstance(error, RefusedError)
    assert error.code is ErrorCode.HOST_KEY_UNKNOWN
    assert last.logins == []


async def test_a_jump_host_that_lets_nobody_through_is_not_asked_again(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, events: list[Event]
) -> None:
    async with asyncssh_server([user_key], tunnels=False) as jump, asyncssh_server([user_key]) as last:
        error = await _error(connect, last.node(identity, jump=("bastion",)), _bastion(jump, identity))
    assert isinstance(error, RefusedError)
    assert "bastion does not forward connections to gpu1" in error.message
    assert events == []


async def test_an_alias_of_the_configuration_with_its_own_jump_host(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(2)]
    async with (
        asyncssh_server([user_key], host_keys=[keys[0]]) as jump,
        asyncssh_server([user_key], host_keys=[keys[1]]) as last,
    ):
        (home / ".ssh" / "config").write_text(f"Include conf.d/*\nHost *\n  User nobody\n  IdentityFile {identity}\n")
        (home / ".ssh" / "conf.d").mkdir()
        (home / ".ssh" / "conf.d" / "cluster").write_text(
            f"Host far\n  HostName 127.0.0.1\n  Port {last.port}\n  User ann\n  ProxyJump bob@near\n"
            f"Host near\n  HostName 127.0.0.1\n  Port {jump.port}\n"
        )
        (home / ".ssh" / "known_hosts").write_text(
            "".join(
                f"[127.0.0.1]:{server.port} {key.export_public_key().decode()}"
                for server, key in zip((jump, last), keys, strict=True)
            )
        )
        async with connect(Node("gpu1", host="far")) as connection:
            assert (await connection.run("echo far")).stdout == b"far\n"
        assert (jump.logins, last.logins) == (["bob"], ["ann"])
        assert jump.tunnels == [("127.0.0.1", last.port)]


async def test_what_the_inventory_says_wins_over_the_configuration(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    (home / ".ssh" / "config").write_text(
        "Host 127.0.0.1\n  User nobody\n  Port 1\n  IdentityFile /nowhere\n  ProxyJump nowhere.invalid\n"
    )
    async with asyncssh_server([user_key]) as jump, asyncssh_server([user_key]) as last:
        bastion = _bastion(jump, identity, host="127.0.0.1")
        (home / ".ssh" / "config").write_text("Host 127.0.0.1\n  User nobody\n  Port 1\n  IdentityFile /nowhere\n")
        async with connect(last.node(identity, jump=("bastion",)), bastion) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"
        assert last.logins == ["bee"]


async def test_the_configurations_own_address_is_used(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    (home / ".ssh" / "config").write_text("Host 127.0.0.1\n  BindAddress 127.0.0.9\n")
    async with asyncssh_server([user_key]) as server, connect(server.node(identity)) as connection:
        assert (await connection.run("echo in")).stdout == b"in\n"
        assert server.connections[0].get_extra_info("peername")[0] == "127.0.0.9"


async def test_jump_hosts_that_go_round_in_a_circle_are_an_error(connect: Connect) -> None:
    one, two = Node("one", host="one.invalid", jump=("two",)), Node("two", host="two.invalid", jump=("one",))
    error = await _error(connect, one, two)
    assert isinstance(error, ConfigError)
    assert "one → two → one" in error.message
