"""Where the gateway listens: addresses of `--listen`, a unix socket, and TLS.

Rules
- Sockets are bound before anything else is begun, so that a port that is taken is told at once.
- A unix socket appears in its place whole: mode 0600, listening. One that a dead process left is replaced, one that
  somebody listens at is left alone.
- What is not loopback is for those who have a key, whatever name it was given by.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.base import trusted_files
from rbee.base.errors import ConfigError, RbeeError, UsageError
from rbee_remote.protocol import ErrorCode
from rbee_remote.system.unix_socket import listens

if TYPE_CHECKING:
    import ssl

DEFAULT = "127.0.0.1:11435"
BACKLOG = 1024
_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>\d{1,5})")
#: Bytes of a path that the kernel takes for a socket's, its end included (sys/un.h).
_LONGEST_PATH = 108


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen at. host: as the user wrote it. where: what it stands for, (family, address) each."""

    host: str
    port: int
    where: tuple[tuple[socket.AddressFamily, str], ...]

    @property
    def is_loopback(self) -> bool:
        return all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for _, address in self.where)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`HOST:PORT` or `[IPV6]:PORT`; a port of 0 is any that is free. Raises UsageError, also for an unknown host."""
    match = _ADDRESS.fullmatch(text)
    if not match or int(match["port"]) > 65535:
        raise UsageError(
            f"--listen: {text!r} is no address",
            hint=f"write HOST:PORT, such as {DEFAULT}, 0.0.0.0:11435 or [::1]:11435",
        )
    host, port = match["v6"] or match["host"], int(match["port"])
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--listen: no host {host!r} is known here", hint="write an address of this machine"
        ) from error
    return Address(host, port, tuple(dict.fromkeys((family, str(at[0])) for family, _, _, _, at in found)))


@contextmanager
def bound(addresses: Sequence[Address]) -> Iterator[list[socket.socket]]:
    """Sockets that listen at all of the addresses. Raises RbeeError IN_USE, ConfigError, with what to do."""
    with contextlib.ExitStack() as opened:
        sockets = []
        for address in addresses:
            for family, host in address.where:
                sockets.append(opened.enter_context(socket.socket(family, socket.SOCK_STREAM)))
                _bind(sockets[-1], address, host)
        yield sockets


def _bind(listener: socket.socket, address: Address, host: str) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        listener.bind((host, address.port))
        listener.listen(BACKLOG)
    except OSError as error:
        raise _cannot_listen(address, error) from error


def _cannot_listen(address: Address, error: OSError) -> RbeeError:
    message = f"cannot listen at {address}: {error.strerror}"
    if error.errno == errno.EADDRINUSE:
        other = f"another port, such as --listen {address.host}:{min(address.port + 1, 65535)}"
        return RbeeError(
            ErrorCode.IN_USE, f"another program listens at {address}", hint=f"`ss -ltnp` shows which; or take {other}"
        )
    hints = {
        errno.EACCES: "ports below 1024 are the administrator's; take a higher one",
        errno.EPERM: "ports below 1024 are the administrator's; take a higher one",
        errno.EADDRNOTAVAIL: "take an address that this machine has: `ip address` shows them",
    }
    return ConfigError(message, hint=hints.get(error.errno or 0, ""))


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """A socket of mode 0600 that listens at `path`, removed at the end if it still is ours.

    Raises RbeeError IN_USE where somebody listens there, ConfigError where it cannot be made.
    """
    path = path.absolute()
    _make_way(path)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(str(draft))
            draft.chmod(0o600)
            listener.listen(BACKLOG)
            draft.rename(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise ConfigError(f"cannot make the socket {path}: {error.strerror or error}") from error
        ours = path.lstat()
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(path.lstat(), ours):
                    path.unlink()


def _make_way(path: Path) -> None:
    """See that a socket can be put at `path`."""
    if len(os.fsencode(path)) + 10 > _LONGEST_PATH:
        raise UsageError(f"--socket: the path {path} is too long for a socket", hint="take one of at most 97 bytes")
    if not path.parent.is_dir():
        raise UsageError(f"--socket: there is no folder {path.parent}", hint=f"mkdir -m 700 {path.parent}")
    trusted_files.check(path.parent, "the socket's folder")
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise UsageError(f"--socket: {path} is there, and is no socket", hint="take another path, or remove it")
    if listens(str(path)):
        raise RbeeError(ErrorCode.IN_USE, f"another program listens at {path}", hint=f"`fuser -v {path}` shows which")


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 and later, with this certificate and its chain. Raises ConfigError."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Let connections from now on have this certificate. Raises ConfigError, and changes nothing then."""
    import ssl

    def no_password() -> str:
        raise ConfigError(
            f"the key {key} is encrypted", hint=f"openssl pkey -in {key} -out PLAIN.pem makes one that is not"
        )

    for path, option in ((certificate, "--tls-cert"), (key, "--tls-key")):
        if not path.is_file():
            raise ConfigError(f"{option}: there is no file {path}")
    status = trusted_files.check(key, "the TLS key")
    if status and trusted_files.is_exposed(status, os.getuid()):
        raise ConfigError(f"the TLS key {key} is not used: others can read it", hint=f"chmod 600 {key}")
    try:
        # Tried apart first: a context that failed half-way would have a certificate without its key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
        context.load_cert_chain(certificate, key, no_password)
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", "") or error.strerror or str(error)
        raise ConfigError(
            f"{certificate} and {key} are not a certificate and its key: {reason}",
            hint="both are PEM files; the certificate's comes first, then its chain",
        ) from error
