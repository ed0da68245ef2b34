"""One try to open one hop: TCP (or a tunnel), host key, user; and what each way of failing means.

Rules
- asyncssh gets every setting from us: the host key is always checked, keep-alive is on, its own reading of
  configuration and keys is off.
- Everything asyncssh raises here becomes an `RbeeError`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any

import asyncssh
from asyncssh.constants import MSG_IGNORE

from rbee.base.errors import ConfigError, ConnectError, RbeeError, RefusedError
from rbee.base.retries import SSH_AUTHENTICATE_S, SSH_CONNECT_S
from rbee.transport.connection import AskPassphrase
from rbee.transport.ssh.hops import Hop
from rbee.transport.ssh.hostkeys import HostKey, Trust, refusal, trust_of
from rbee.transport.ssh.identities import Identities, open_identities
from rbee_remote.protocol import ErrorCode

#: A server that says nothing for 5 s is asked, three times: a dead connection is noticed within 20 s, whatever is under
#: way. An upload over a slow line is no silence: the server acknowledges every 96 KB.
KEEPALIVE_INTERVAL = 5
KEEPALIVE_COUNT = 3

#: The fast ones first: models are large. Key exchanges are asyncssh's own choice, which prefers post-quantum ones.
_CIPHERS = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
]


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection whose host and user are checked. connected_at: when TCP stood, on the monotonic clock."""

    connection: asyncssh.SSHClientConnection
    connected_at: float


async def open_hop(hop: Hop, tunnel: asyncssh.SSHClientConnection | None, ask: AskPassphrase | None) -> Opened:
    """Raises ConnectError, RefusedError, ConfigError.

    A pin does not say of which type its key is: when the server shows another key, its other keys are asked for.
    """
    trust = trust_of(hop)
    seen: list[HostKey] = []
    while True:
        algorithms = trust.algorithms(without=frozenset(key.algorithm for key in seen))
        try:
            return await _attempt(hop, tunnel, ask, trust, algorithms)
        except _HostKeyRefused as refused:
            if refused.offered is not None:
                seen.append(refused.offered)
            others = trust.pinned and refused.offered is not None
            if not others or not trust.algorithms(without=frozenset(key.algorithm for key in seen)):
                raise refusal(hop, trust, seen, refused.reason) from refused
        except ConnectError as error:
            if seen:  # some servers hang up when they are asked for a type of key that they do not have
                raise refusal(hop, trust, seen, error.message) from error
            raise
        except _NothingInCommon as error:
            if seen:
                raise refusal(hop, trust, seen, error.reason) from error
            raise RefusedError(
                ErrorCode.AUTH_FAILED,
                f"{hop.name} supports no SSH algorithm that rbee supports",
                hint="its SSH server is too old, or restricted",
                details={"host": hop.address, "reason": error.reason},
            ) from error


async def show_host_key(
    hop: Hop, tunnel: asyncssh.SSHClientConnection | None, seen: Sequence[HostKey] = (), families: tuple[str, ...] = ()
) -> HostKey:
    """The key that the server shows; nothing is trusted and no user is named. Raises as `open_hop`.

    seen: keys that it has shown already; their types are not asked for again. families: the types to ask for first.
    """
    nothing = Trust(frozenset(), families)
    try:
        await _attempt(hop, tunnel, None, nothing, nothing.algorithms(without=frozenset(key.algorithm for key in seen)))
    except _HostKeyRefused as refused:
        if refused.offered is None:
            raise refusal(hop, nothing, [], refused.reason) from refused
        return refused.offered
    except _NothingInCommon as error:
        raise _unreachable(hop, error.reason) from error
    raise AssertionError("a key was accepted although none is trusted")


class BusyError(ConnectError):
    """The server took the connection and hung up without a word."""


class _HostKeyRefused(Exception):
    def __init__(self, offered: HostKey | None, reason: str) -> None:
        super().__init__(reason)
        self.offered = offered
        self.reason = reason


class _NothingInCommon(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Client(asyncssh.SSHClient):
    """What asyncssh asks and tells while it connects."""

    def __init__(self, trust: Trust, keys: AsyncIterator[asyncssh.SSHKeyPair], limit: asyncio.Timeout) -> None:
        self.connected_at = 0.0
        self.offered: HostKey | None = None
        self.methods: list[str] = []
        self.authenticating = False
        self.failure: RbeeError | None = None
        self._trust = trust
        self._keys = keys
        self._limit = limit
        self._connection: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._connection = conn
        self.connected_at = time.monotonic()

    @property
    def heard_nothing(self) -> bool:
        """Whether there was a connection, but not even the server's version."""
        return self._connection is not None and not self._connection.get_extra_info("server_version")

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.offered = HostKey.of(key)
        return self._trust.accepts(key)

    async def public_key_auth_requested(self) -> asyncssh.SSHKeyPair | None:
        """The next key to offer. What goes wrong here is kept: asyncssh would take it for a bug of its own."""
        assert self._connection is not None
        self.authenticating = True
        self.methods = list(self._connection.get_server_auth_methods())
        # Somebody may be typing a passphrase, or touching a token.
        self._limit.reschedule(None)
        try:
            return await anext(self._keys, None)
        except RbeeError as error:
            self.failure = error
            return None
        finally:
            self._limit.reschedule(asyncio.get_running_loop().time() + SSH_AUTHENTICATE_S)


async def _attempt(
    hop: Hop,
    tunnel: asyncssh.SSHClientConnection | None,
    ask: AskPassphrase | None,
    trust: Trust,
    algorithms: list[str],
) -> Opened:
    client: _Client | None = None
    async with open_identities(hop, ask) as (identities, keys):
        try:
            async with asyncio.timeout(SSH_CONNECT_S) as limit:
                client = _Client(trust, keys, limit)
                connection = await asyncssh.connect(**_options(hop, tunnel, trust, algorithms, client))
                _send_once(connection)
                return Opened(connection, client.connected_at)
        except (TimeoutError, OSError, asyncssh.Error, ValueError) as error:
            assert client is not None, "nothing of this is raised before"
            if client.failure is not None:
                raise client.failure from error
            raise _translate(error, hop, client, identities) from error


def _send_once(connection: asyncssh.SSHClientConnection) -> None:
    """Without the packet to be ignored that asyncssh sends before each one, as a write of its own: it hides the IVs of
    CBC, which none of our ciphers has, and costs as much again as all that is sent, here and at sshd."""
    send = connection.send_packet

    def send_packet(kind: int, *args: bytes, handler: Any = None) -> None:
        if kind != MSG_IGNORE:
            send(kind, *args, handler=handler)

    connection.send_packet = send_packet  # type: ignore[method-assign, assignment]


def _options(
    hop: Hop, tunnel: asyncssh.SSHClientConnection | None, trust: Trust, algorithms: list[str], client: _Client
) -> dict[str, Any]:
    authorities = list(trust.authorities)
    revoked = list(trust.revoked) if authorities else []  # of plain keys `Trust` knows it, and we see which it was
    return {
        "host": hop.host,
        "port": hop.port,
        "username": hop.user,
        "family": hop.family,
        "local_addr": (hop.bind_address, 0) if hop.bind_address else (),
        "tunnel": tunnel or (),
        "proxy_command": ["/bin/sh", "-c", f"exec {hop.proxy_command}"] if hop.proxy_command else (),
        "config": None,
        "client_factory": lambda: client,
        "known_hosts": lambda _host, _address, _port: ([], authorities, revoked),
        "host_key_alias": hop.host_key_alias,
        "server_host_key_algs": algorithms,
        "encryption_algs": _CIPHERS,
        "compression_algs": ["none"],
        "client_keys": None,  # they come from `public_key_auth_requested`
        "preferred_auth": ["publickey"],
        "agent_forwarding": False,
        "utf8_decode_errors": "replace",  # of banners, which nobody reads here
        "x509_trusted_certs": None,
        "gss_host": None,
        "connect_timeout": None,  # ours counts
        "login_timeout": 0,
        "keepalive_interval": KEEPALIVE_INTERVAL,
        "keepalive_count_max": KEEPALIVE_COUNT,
    }


def _translate(error: Exception, hop: Hop, client: _Client, identities: Identities) -> Exception:
    match error:
        case asyncssh.HostKeyNotVerifiable():
            return _HostKeyRefused(client.offered, str(error))
        case asyncssh.KeyExchangeFailed():
            return _NothingInCommon(str(error))
        case asyncssh.PermissionDenied():
            return identities.refusal(client.methods)
        case asyncssh.ChannelOpenError(code=asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED):
            return RefusedError(
                ErrorCode.AUTH_FAILED,
                f"the jump host {hop.behind} does not forward connections to {hop.name}",
                hint="set AllowTcpForwarding in its sshd_config",
                details={"host": hop.address, "reason": str(error)},
            )
        case asyncssh.DisconnectError() if client.authenticating and not isinstance(error, asyncssh.ConnectionLost):
            return identities.refusal(client.methods)  # too many keys, for one
        case TimeoutError():
            return _unreachable(hop, "no answer in time")
        case asyncssh.ConnectionLost() | ConnectionError() if client.heard_nothing:
            return _hung_up(hop)
        case socket.gaierror():
            return _unreachable(hop, f"the name {hop.host} is not known: {error.strerror}")
        case OSError():
            return _unreachable(hop, os.strerror(error.errno) if error.errno else str(error))
        case asyncssh.Error():
            return _unreachable(hop, error.reason)
        case _:
            return ConfigError(f"{hop.name} cannot be reached with these settings: {error}")


def _hung_up(hop: Hop) -> ConnectError:
    """TCP stood, or a proxy ran, and no SSH server has said its version."""
    if hop.proxy_command:
        why = "its ProxyCommand ended without a connection"
        return _unreachable(hop, why, hint=f"run it to see what it says: {hop.proxy_command}")
    return BusyError(
        ErrorCode.CONNECTION_TIMEOUT,
        f"{hop.name} closes connections before login",
        hint="its sshd may have too many connections that are not logged in yet (MaxStartups), or block this address "
        "after failed logins (PerSourcePenalties): wait a minute",
        details={"host": hop.address, "reason": "the server closed the connection before it sent its version"},
    )


def _unreachable(hop: Hop, reason: str, *, hint: str = "") -> ConnectError:
    return ConnectError(
        ErrorCode.CONNECTION_TIMEOUT,
        f"{hop.name} cannot be reached",
        hint=hint or f"check host, port and network: ssh -p {hop.port} {quote(f'{hop.user}@{hop.host}')}",
        details={"host": hop.address, "reason": reason},
    )
