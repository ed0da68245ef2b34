"""Over which hosts a node is reached, and how each of them: the inventory first, then ssh's files, then defaults.

Rules
- What the inventory says wins. Of ssh's configuration only what is named in `_hop` counts; nothing there can switch the
  check of host keys off.
- No name gets into a command of ssh's files that a shell would take for more than a word (`rbee.inventory.names`).
- Every hop of a chain is resolved on its own, so that each is opened and checked by us.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rbee.base.errors import ConfigError
from rbee.inventory import Node
from rbee.inventory.names import check_host_name, check_user_name, read_target
from rbee.transport.ssh import client_config
from rbee.transport.ssh.client_config import Settings, settings_of

DEFAULT_PORT = 22

_DEFAULT_IDENTITIES = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")


@dataclass(frozen=True, slots=True)
class Hop:
    """One SSH server on the way, fully resolved.

    name: as the user wrote it. in_inventory: it is a node. explicit_identity: the inventory names the key, and no
    other is tried. agent: the agent's socket, "" for none. host_key: the pinned fingerprint.
    known_hosts: the files that decide without a pin. proxy_command, bind_address: for the first hop only. behind: the
    name of the hop before, "" for the first.
    """

    name: str
    in_inventory: bool
    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    explicit_identity: bool
    identities_only: bool
    certificates: tuple[Path, ...]
    agent: str
    host_key: str | None
    host_key_alias: str | None
    known_hosts: tuple[Path, ...]
    proxy_command: str | None
    bind_address: str | None
    family: int
    behind: str = ""

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def target(self) -> str:
        """As `rbee nodes add` takes it."""
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{self.user}@{self.host}{port}"


def route(node: Node, nodes: Mapping[str, Node]) -> tuple[Hop, ...]:
    """The hops to `node`, itself last.

    Raises ConfigError for a circle of jump hosts, and for a configuration that cannot be read or honoured.
    """
    return _Router(nodes, (Path("~/.ssh/config").expanduser(), client_config.SYSTEM_CONFIG)).to_node(node, ())


class _Router:
    def __init__(self, nodes: Mapping[str, Node], files: tuple[Path, ...]) -> None:
        self._nodes = nodes
        self._files = files

    def to_node(self, node: Node, seen: tuple[str, ...]) -> tuple[Hop, ...]:
        if node.host is None:
            raise ConfigError(f"{node.name} is this machine, it cannot be a jump host")
        settings = self._settings(node.host, user=node.user, port=node.port)
        hop = self._hop(node.name, node.host, settings)
        hop = replace(hop, in_inventory=True, host_key=node.host_key)
        if node.identity_file is not None:
            identity = node.identity_file.expanduser()
            hop = replace(hop, identities=(identity,), explicit_identity=True, identities_only=True)
        return self._through(node.jump or _jumps(settings), hop, seen)

    def _to_alias(self, target: str, seen: tuple[str, ...]) -> tuple[Hop, ...]:
        try:
            jump = read_target(target)
        except ValueError as error:
            raise ConfigError(str(error), hint="write it as [USER@]HOST[:PORT]") from error
        settings = self._settings(jump.host, user=jump.user, port=jump.port)
        return self._through(_jumps(settings), self._hop(jump.host, jump.host, settings), seen)

    def _through(self, jumps: tuple[str, ...], hop: Hop, seen: tuple[str, ...]) -> tuple[Hop, ...]:
        """`hop` behind `jumps`. As with ssh -J, only the first of several jump hosts is reached as it says itself."""
        if hop.name in seen:
            circle = " → ".join((*seen[seen.index(hop.name) :], hop.name))
            raise ConfigError(f"the jump hosts form a loop: {circle}")
        if not jumps:
            return (hop,)
        before: list[Hop] = []
        for index, jump in enumerate(jumps):
            known = self._nodes.get(jump)
            hops = (
                self.to_node(known, (*seen, hop.name)) if known is not None else self._to_alias(jump, (*seen, hop.name))
            )
            before += hops if index == 0 else [replace(hops[-1], proxy_command=None, behind=before[-1].name)]
        return (*before, replace(hop, proxy_command=None, bind_address=None, behind=before[-1].name))

    def _settings(self, alias: str, *, user: str | None, port: int | None) -> Settings:
        _check_names(alias, alias, user)  # before `Match exec` runs a command that they stand in
        return settings_of(alias, user=user, port=port, files=self._files)

    def _hop(self, name: str, alias: str, settings: Settings) -> Hop:
        identities: Any = settings.get("IdentityFile")  # `none` is an empty list
        default = Path("~/.ssh").expanduser()
        user_hosts: Any = settings.get("UserKnownHostsFile")
        if user_hosts is None:
            user_hosts = [str(default / "known_hosts"), str(default / "known_hosts2")]
        global_hosts: Any = settings.get("GlobalKnownHostsFile", list(_GLOBAL_KNOWN_HOSTS))
        proxy_command: Any = settings.get("ProxyCommand")
        host = str(settings.get("Hostname", alias))
        user = str(settings.get("User") or getpass.getuser())
        _check_names(alias, host, user)  # what the files say, too: it may have been put together from several
        return Hop(
            name=name,
            in_inventory=False,
            host=host.lower(),  # as ssh looks it up in known_hosts
            port=_port(alias, settings),
            user=user,
            identities=_paths([default / name for name in _DEFAULT_IDENTITIES] if identities is None else identities),
            explicit_identity=False,
            identities_only=bool(settings.get("IdentitiesOnly", False)),
            certificates=_paths(settings.get("CertificateFile")),
            agent=_agent(settings),
            host_key=None,
            host_key_alias=settings.get("HostKeyAlias") or None,  # type: ignore[arg-type]
            known_hosts=_paths([*user_hosts, *global_hosts]),
            proxy_command=proxy_command,
            bind_address=settings.get("BindAddress") or None,  # type: ignore[arg-type]
            family=int(str(settings.get("AddressFamily", 0))),
        )


def _check_names(alias: str, host: str, user: str | None) -> None:
    """Raises ConfigError for a name that a shell would take for more than a word. The hint is no command to paste."""
    try:
        check_host_name(host)
        if user is not None:
            check_user_name(user)
    except ValueError as error:
        raise ConfigError(
            f"{alias!r} cannot be connected to: {error}",
            hint="ssh's files can put names into commands, so none has a character that a shell understands",
        ) from error


def _port(alias: str, settings: Settings) -> int:
    port = int(str(settings.get("Port", DEFAULT_PORT)))
    if not 0 < port < 2**16:
        raise ConfigError(
            f"the SSH configuration of {alias} has an invalid port: {port}", hint=f"check it with: ssh -G {alias}"
        )
    return port


def _jumps(settings: Settings) -> tuple[str, ...]:
    value = settings.get("ProxyJump")
    return tuple(part.strip() for part in str(value).split(",")) if value else ()


def _paths(values: Any) -> tuple[Path, ...]:
    return tuple(Path(value).expanduser() for value in values or ())


def _agent(settings: Settings) -> str:
    """The socket of the agent: IdentityAgent, which can also be none or the name of a variable; else SSH_AUTH_SOCK."""
    value: Any = settings.get("IdentityAgent", "SSH_AUTH_SOCK")
    if value is None:
        return ""
    if value == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    if value.startswith("$"):
        return os.environ.get(value.strip("${}"), "")
    return str(Path(value).expanduser())
