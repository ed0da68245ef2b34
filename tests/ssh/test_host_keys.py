"""Host keys: pinned, remembered, unknown, changed; nothing in ~/.ssh/config switches the check off."""

from __future__ import annotations

from pathlib import Path

import asyncssh
import pytest

from rbee.base.errors import RefusedError
from rbee.base.events import Event
from rbee.transport.ssh import scan_host_key
from rbee.transport.ssh.hostkeys import HostKey
from rbee.transport.ssh.scan import Scanned
from rbee_remote.protocol import ErrorCode
from tests.ssh.conftest import Connect
from tests.ssh.servers import Server, asyncssh_server


def remember(home: Path, pattern: str, key: asyncssh.SSHKey, marker: str = "") -> None:
    line = f"{marker}{pattern} {key.export_public_key().decode()}"
    with (home / ".ssh" / "known_hosts").open("a") as known:
        known.write("this line makes no sense\n" + line)


async def _refused(connect: Connect, server: Server, identity: Path, **settings: object) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        async with connect(server.node(identity, **settings)):
            pass
    return caught.value


async def test_a_pinned_key_of_any_type_is_found_among_the_servers_keys(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path
) -> None:
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa")]
    async with asyncssh_server([user_key], host_keys=keys) as server:
        for fingerprint in server.host_keys:
            async with connect(server.node(identity, host_key=fingerprint)) as connection:
                assert (await connection.run("echo in")).stdout == b"in\n"


async def test_a_changed_key_is_refused_with_both_fingerprints_and_without_another_try(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, events: list[Event]
) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").get_fingerprint()
    async with asyncssh_server([user_key]) as server:
        error = await _refused(connect, server, identity, host_key=other)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert (error.details["expected"], error.details["got"]) == (other, server.host_keys[0])
    assert error.exit_status == 4
    assert events == []
    assert server.logins == []


async def test_an_unknown_key_is_refused_with_its_fingerprint_and_how_to_pin_it(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, events: list[Event]
) -> None:
    async with asyncssh_server([user_key]) as server:
        error = await _refused(connect, server, identity, host_key=None)
    assert error.code is ErrorCode.HOST_KEY_UNKNOWN
    assert error.details["fingerprint"] == server.host_keys[0]
    assert f'host_key = "{server.host_keys[0]}"' in error.hint
    add = f"rbee nodes add gpu1 bee@127.0.0.1:{server.port} --identity {identity}"
    assert error.hint.endswith(f"{add} --host-key {server.host_keys[0]}")
    assert events == []
    assert server.logins == []


@pytest.mark.parametrize(
    "setting",
    ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null", "StrictHostKeyChecking no", "NoHostAuthentication yes"],
)
async def test_the_configuration_cannot_switch_the_check_off(
    setting: str, connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    (home / ".ssh" / "config").write_text(f"Host *\n  {setting}\n")
    async with asyncssh_server([user_key]) as server:
        error = await _refused(connect, server, identity, host_key=None)
    assert error.code is ErrorCode.HOST_KEY_UNKNOWN


async def test_known_hosts_decides_without_a_pin(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ssh-rsa")]
    async with asyncssh_server([user_key], host_keys=keys) as server:
        remember(home, f"[127.0.0.1]:{server.port}", keys[1])  # RSA, although the server has an ed25519 key as well
        async with connect(server.node(identity, host_key=None)) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"


async def test_a_hashed_entry_is_found(connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path) -> None:
    import base64
    import hashlib
    import hmac

    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh_server([user_key], host_keys=[key]) as server:
        digest = hmac.new(b"salt" * 5, f"[127.0.0.1]:{server.port}".encode(), hashlib.sha1).digest()
        hashed = f"|1|{base64.b64encode(b'salt' * 5).decode()}|{base64.b64encode(digest).decode()}"
        remember(home, hashed, key)
        async with connect(server.node(identity, host_key=None)) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"


async def test_an_entry_for_another_port_is_no_entry(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    remember(home, "127.0.0.1", asyncssh.generate_private_key("ssh-ed25519"))
    async with asyncssh_server([user_key], host_keys=[key]) as server:
        error = await _refused(connect, server, identity, host_key=None)
    assert error.code is ErrorCode.HOST_KEY_UNKNOWN


async def test_a_key_that_differs_from_the_remembered_one_is_refused(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    old = asyncssh.generate_private_key("ssh-rsa")
    async with asyncssh_server([user_key]) as server:
        remember(home, f"[127.0.0.1]:{server.port}", old)
        error = await _refused(connect, server, identity, host_key=None)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert (error.details["expected"], error.details["got"]) == (old.get_fingerprint(), server.host_keys[0])
    assert "ssh-keygen -R" in error.hint


async def test_a_revoked_key_is_refused(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh_server([user_key], host_keys=[key]) as server:
        remember(home, f"[127.0.0.1]:{server.port}", key)
        remember(home, "*", key, "@revoked ")
        error = await _refused(connect, server, identity, host_key=None)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert "revoked" in error.details["reason"]


async def test_a_key_that_is_pinned_and_revoked_is_refused_and_another_one_is_found(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ssh-rsa")]
    async with asyncssh_server([user_key], host_keys=keys) as server:
        remember(home, f"[127.0.0.1]:{server.port}", keys[0], "@revoked ")
        error = await _refused(connect, server, identity, host_key=server.host_keys[0])
        assert server.logins == []
        async with connect(server.node(identity, host_key=server.host_keys[1])) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"
    assert error.code is ErrorCode.HOST_KEY_MISMATCH
    assert (error.details["got"], error.details["reason"]) == (server.host_keys[0], "revoked")
    assert "is revoked in known_hosts" in error.message


async def test_a_key_that_the_host_shows_on_port_22_is_known_on_another_port(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-ed25519", "ssh-rsa")]
    async with asyncssh_server([user_key], host_keys=keys) as server:
        remember(home, "127.0.0.1", keys[0])
        async with connect(server.node(identity, host_key=None)) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"
        remember(home, f"[127.0.0.1]:{server.port}", asyncssh.generate_private_key("ssh-ed25519"))
        error = await _refused(connect, server, identity, host_key=None)
    assert error.code is ErrorCode.HOST_KEY_MISMATCH


async def test_a_certificate_of_a_known_authority_is_accepted(
    connect: Connect, user_key: asyncssh.SSHKey, identity: Path, home: Path
) -> None:
    authority = asyncssh.generate_private_key("ssh-ed25519")
    key = asyncssh.generate_private_key("ssh-ed25519")
    certificate = authority.generate_host_certificate(key, "gpu1", principals=["127.0.0.1"])
    async with asyncssh_server([user_key], host_keys=[key], certificates=[certificate]) as server:
        remember(home, f"[127.0.0.1]:{server.port}", authority, "@cert-authority ")
        async with connect(server.node(identity, host_key=None)) as connection:
            assert (await connection.run("echo in")).stdout == b"in\n"


async def test_the_key_of_a_new_node_is_shown_without_a_login(user_key: asyncssh.SSHKey, identity: Path) -> None:
    keys = [asyncssh.generate_private_key(kind) for kind in ("ssh-rsa", "ssh-ed25519")]
    async with asyncssh_server([user_key], host_keys=keys) as server:
        scanned = await scan_host_key(server.node(identity, host_key=None), {}, emit=lambda event: None)
    assert scanned == Scanned(HostKey(server.host_keys[1], "ssh-ed25519"), known=False)
    assert server.logins == []
