"""Addresses, sockets and certificates: what is taken, what is refused, and what the user is told to do."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError, RbeeError, UsageError
from rbee.gateway.access.listen import bound, parse_address, tls_context, unix_listener
from rbee_remote.protocol import ErrorCode
from tests.doubles.certificate import make_certificate


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as made:
        yield Path(made)


@pytest.mark.parametrize(
    ("text", "host", "port", "is_loopback"),
    [
        ("127.0.0.1:11435", "127.0.0.1", 11435, True),
        ("127.3.2.1:0", "127.3.2.1", 0, True),
        ("[::1]:80", "::1", 80, True),
        ("localhost:1", "localhost", 1, True),
        ("0.0.0.0:65535", "0.0.0.0", 65535, False),
        ("[::]:1", "::", 1, False),
        ("192.0.2.1:1", "192.0.2.1", 1, False),
        ("[::ffff:192.0.2.1]:1", "::ffff:192.0.2.1", 1, False),
    ],
)
def test_addresses(text: str, host: str, port: int, is_loopback: bool) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.is_loopback) == (host, port, is_loopback)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "11435",
        ":11435",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "::1:80",
        "[::1]",
        "a:b",
        "http://a:1",
        "a:1 ",
    ],
)
def test_what_is_no_address_is_said_with_what_would_be(text: str) -> None:
    with pytest.raises(UsageError, match="is no address") as error:
        parse_address(text)
    assert "127.0.0.1:11435" in error.value.hint


def test_an_unknown_host_is_said() -> None:
    with pytest.raises(UsageError, match=r"no host 'nowhere\.invalid' is known here"):
        parse_address("nowhere.invalid:1")


def test_several_addresses_at_once() -> None:
    with bound([parse_address("127.0.0.1:0"), parse_address("127.0.0.2:0")]) as sockets:
        for listener in sockets:
            socket.create_connection(listener.getsockname()).close()
    assert all(listener.fileno() == -1 for listener in sockets)


def test_a_port_that_is_taken_is_told_with_a_hint() -> None:
    with bound([parse_address("127.0.0.1:0")]) as (taken,):
        port = taken.getsockname()[1]
        with pytest.raises(RbeeError) as error, bound([parse_address(f"127.0.0.1:{port}")]):
            pass
    assert error.value.code is ErrorCode.IN_USE
    assert error.value.message == f"another program listens at 127.0.0.1:{port}"
    assert f"--listen 127.0.0.1:{port + 1}" in error.value.hint


def test_an_address_of_another_machine_is_told_with_a_hint() -> None:
    with (
        pytest.raises(ConfigError, match=r"cannot listen at 192\.0\.2\.1:0") as error,
        bound([parse_address("192.0.2.1:0")]),
    ):
        pass
    assert "ip address" in error.value.hint


def test_a_socket_is_this_users_alone_and_gone_at_the_end(folder: Path) -> None:
    path = folder / "s"
    with unix_listener(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert list(folder.iterdir()) == []


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with unix_listener(path):
        with pytest.raises(RbeeError) as error, unix_listener(path):
            pass
        assert error.value.code is ErrorCode.IN_USE
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_a_socket_of_somebody_later_is_left(folder: Path) -> None:
    path = folder / "s"
    with contextlib.ExitStack() as later, unix_listener(path):
        path.unlink()
        later.enter_context(unix_listener(path))
    # the later one has removed its own
    assert not path.exists()
    with unix_listener(path):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


def test_what_cannot_be_a_socket_is_refused(folder: Path) -> None:
    (folder / "file").write_text("mine")
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    for path, error, message in (
        (folder / "file", UsageError, "is no socket"),
        (folder / "none" / "s", UsageError, "there is no folder"),
        (folder / ("x" * 100), UsageError, "too long"),
        (folder / "open" / "s", ConfigError, "can be written by everybody"),
    ):
        with pytest.raises(error, match=message), unix_listener(path):
            pass
    assert (folder / "file").read_text() == "mine"


def test_certificates_that_cannot_be_used_are_told_apart(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "one")
    _, other = make_certificate(tmp_path, "other")
    _, encrypted = make_certificate(tmp_path, "locked", b"secret")
    tls_context(certificate, key)
    for pair, message in (
        ((tmp_path / "none", key), "--tls-cert: there is no file"),
        ((certificate, tmp_path / "none"), "--tls-key: there is no file"),
        ((certificate, other), "not a certificate and its key"),
        ((key, key), "not a certificate and its key"),
        ((certificate, encrypted), "is encrypted"),
    ):
        with pytest.raises(ConfigError, match=message):
            tls_context(*pair)
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read it") as error:
        tls_context(certificate, key)
    assert error.value.hint == f"chmod 600 {key}"
    assert os.getuid() == key.stat().st_uid
