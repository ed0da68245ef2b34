"""Which host keys are trusted: the inventory's pinned fingerprint, else known_hosts. There is no way to trust any key.

Rules
- A pin decides alone, but for keys that known_hosts marks with @revoked: those are refused whatever else is said.
  Without a pin the host must stand in known_hosts under the name (or alias) it was asked for; the address it resolved
  to does not count. Behind a port other than 22 it stands there as [host]:port; without such a line, a key that the
  host has on port 22 is as good, as for ssh, and so is an authority of its certificates; another key is unknown.
- What is revoked for the host is revoked on every port. ssh does not look that far where [host]:port has the key.
- An unknown key and a changed key are different errors, and neither is ever tried again.
- A hint to pin a key names the fingerprint that was shown, so that nobody is led to a second look that might show
  another key.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from rbee.base.errors import RefusedError
from rbee.transport.ssh.hops import DEFAULT_PORT, Hop
from rbee_remote.protocol import ErrorCode

#: Families of plain host keys in the order of preference, each with its signature algorithms.
FAMILIES: dict[str, tuple[str, ...]] = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa-sha2-nistp256": ("ecdsa-sha2-nistp256",),
    "ecdsa-sha2-nistp384": ("ecdsa-sha2-nistp384",),
    "ecdsa-sha2-nistp521": ("ecdsa-sha2-nistp521",),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}

_CERTIFICATES = tuple(
    f"{algorithm}-cert-v01@openssh.com" for algorithms in FAMILIES.values() for algorithm in algorithms
)


@dataclass(frozen=True, slots=True)
class HostKey:
    """A server's key. fingerprint: "SHA256:…". algorithm: the key's type, such as ssh-ed25519."""

    fingerprint: str
    algorithm: str

    @classmethod
    def of(cls, key: asyncssh.SSHKey) -> HostKey:
        return cls(key.get_fingerprint(), key.get_algorithm())


@dataclass(frozen=True, slots=True)
class Trust:
    """What is trusted of one host.

    fingerprints: of its plain keys; empty when nothing is known. families: of those keys, where they are known.
    authorities: keys that may sign its certificates. revoked: keys that are refused whatever else is said.
    on_port_22: fingerprints of what the host shows there: good for a match, and nothing to differ from.
    """

    fingerprints: frozenset[str]
    families: tuple[str, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()
    on_port_22: frozenset[str] = frozenset()
    pinned: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.fingerprints and not self.authorities

    def accepts(self, key: asyncssh.SSHKey) -> bool:
        shown = HostKey.of(key)
        return self.knows(shown) and not self.refuses(shown)

    def knows(self, key: HostKey) -> bool:
        return key.fingerprint in self.fingerprints or key.fingerprint in self.on_port_22

    def refuses(self, key: HostKey) -> bool:
        """Whether it is revoked."""
        return any(key.fingerprint == revoked.get_fingerprint() for revoked in self.revoked)

    def algorithms(self, *, without: frozenset[str] = frozenset()) -> list[str]:
        """What to ask the server for, best first; keys of types that are known come first.

        Otherwise a server whose ed25519 key is known could answer with its RSA key, which is not.
        without: families that were seen already.
        """
        families = [*self.families, *(family for family in FAMILIES if family not in self.families)]
        plain = [name for family in families if family not in without for name in FAMILIES[family]]
        return [*_CERTIFICATES, *plain] if self.authorities else plain


def trust_of(hop: Hop) -> Trust:
    """What the inventory or known_hosts says of this host."""
    if hop.host_key is None:
        return known_hosts_of(hop)
    known = _load(hop.known_hosts, only_revoked=True)
    revoked = tuple(key for name in _names(hop) for key in known.match(name, "", None)[2])
    return Trust(frozenset({hop.host_key.rstrip("=")}), revoked=revoked, pinned=True)


def known_hosts_of(hop: Hop) -> Trust:
    """What known_hosts says of this host, whatever the inventory pins."""
    known = _load(hop.known_hosts)
    (keys, authorities, revoked), *behind = [known.match(name, "", None)[:3] for name in _names(hop)]
    on_port_22: Sequence[asyncssh.SSHKey] = ()
    for others in behind:
        revoked = [*revoked, *others[2]]
        if not keys and not authorities:
            on_port_22, authorities = others[0], others[1]
    families = tuple(dict.fromkeys(key.get_algorithm() for key in keys if key.get_algorithm() in FAMILIES))
    return Trust(
        frozenset(key.get_fingerprint() for key in keys),
        families,
        tuple(authorities),
        tuple(revoked),
        on_port_22=frozenset(key.get_fingerprint() for key in on_port_22),
    )


def _names(hop: Hop) -> tuple[str, ...]:
    """Under which names ssh looks for it, the plain one behind the one with a port."""
    name = name_in_known_hosts(hop)
    return (name,) if name == hop.host or hop.host_key_alias else (name, hop.host)


def name_in_known_hosts(hop: Hop) -> str:
    """As ssh looks for it."""
    if hop.host_key_alias:
        return hop.host_key_alias
    return hop.host if hop.port == DEFAULT_PORT else f"[{hop.host}]:{hop.port}"


def _load(paths: Iterable[Path], *, only_revoked: bool = False) -> asyncssh.SSHKnownHosts:
    """The known_hosts files, as one. What ssh cannot read either is left out: whole files, and lines without sense.

    only_revoked: of the rest nothing, which spares the warm path the reading of keys that do not matter.
    """
    known = asyncssh.SSHKnownHosts()
    for path in paths:
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if only_revoked and not line.lstrip().startswith("@revoked"):
                continue
            with contextlib.suppress(ValueError):
                known.load(line)
    return known


def refusal(hop: Hop, trust: Trust, offered: list[HostKey], reason: str) -> RefusedError:
    """Why a host key was refused. offered: what the server showed; reason: asyncssh's words when it showed nothing."""
    got = next((key for key in offered if trust.refuses(key)), offered[0] if offered else None)
    if "key is revoked" in reason or (got is not None and trust.refuses(got)):
        return _revoked(hop, got)
    details: dict[str, object] = {"host": hop.address}
    if got is None:
        details["reason"] = reason
    elif trust.is_empty:
        return RefusedError(
            ErrorCode.HOST_KEY_UNKNOWN,
            f"the host key of {hop.name} is not known: {got.algorithm} {got.fingerprint}",
            hint=_how_to_pin(hop, got),
            details={"host": hop.address, "fingerprint": got.fingerprint, "algorithm": got.algorithm},
        )
    else:
        details |= {"got": got.fingerprint, "algorithm": got.algorithm}
    expected = sorted(trust.fingerprints or (key.get_fingerprint() for key in trust.authorities))
    details["expected"] = expected[0] if len(expected) == 1 else expected
    if trust.fingerprints:
        where = "is pinned" if trust.pinned else "known_hosts says"
        message = f"the host key of {hop.name} is not the one that {where}: somebody may be listening in"
    else:
        message = f"{hop.name} shows no certificate of an authority that known_hosts names for it"
    return RefusedError(
        ErrorCode.HOST_KEY_MISMATCH,
        message,
        hint=f"if the machine was installed again, compare its key ({_COMPARE}), then {_how_to_replace(hop, trust)}",
        details=details,
    )


def _revoked(hop: Hop, got: HostKey | None) -> RefusedError:
    shown = {"got": got.fingerprint, "algorithm": got.algorithm} if got else {}
    return RefusedError(
        ErrorCode.HOST_KEY_MISMATCH,
        f"the host key of {hop.name} is revoked in known_hosts: whoever presents it may not be this machine",
        hint="the machine needs another host key; pin that one once it has it",
        details={"host": hop.address, **shown, "reason": "revoked"},
    )


_COMPARE = "there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"


def _how_to_pin(hop: Hop, got: HostKey) -> str:
    compare = f"compare it with the machine's own ({_COMPARE}), then "
    if hop.in_inventory:
        identity = f" --identity {shlex.quote(str(hop.identities[0]))}" if hop.explicit_identity else ""
        return (
            f'{compare}put host_key = "{got.fingerprint}" into its table of the inventory, or: rbee nodes remove '
            f"{hop.name}; rbee nodes add {hop.name} {shlex.quote(hop.target)}{identity} --host-key {got.fingerprint}"
        )
    port = "" if hop.port == DEFAULT_PORT else f"-p {hop.port} "
    return (
        f"{compare}let ssh remember just that one: ssh {port}{shlex.quote(f'{hop.user}@{hop.name}')} true, "
        f"with {got.fingerprint} as the answer to its question"
    )


def _how_to_replace(hop: Hop, trust: Trust) -> str:
    if trust.pinned:
        return "pin the fingerprint that it prints: host_key in the inventory, or --host-key of `rbee nodes add`"
    if not trust.fingerprints:
        return "give it a certificate, or pin its key: host_key in the inventory, or --host-key of `rbee nodes add`"
    return f"remove the remembered key: ssh-keygen -R {shlex.quote(name_in_known_hosts(hop))}"
