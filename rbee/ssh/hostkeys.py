"""Which host keys are trusted: the inventory's pinned fingerprint, else known_hosts. There is no way to trust any key.

Rules
- A pin decides alone. Without one the host must stand in known_hosts under the name (or alias) it was asked for, with
  its port where that is not 22; the address it resolved to does not count.
- An unknown key and a changed key are different errors, and neither is ever tried again.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from rbee.errors import RefusedError
from rbee.ssh.config import DEFAULT_PORT, Hop
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
    """

    fingerprints: frozenset[str]
    families: tuple[str, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()
    pinned: bool = False

    @property
    def is_empty(self) -> bool:
        return not self.fingerprints and not self.authorities

    def accepts(self, key: asyncssh.SSHKey) -> bool:
        return key.get_fingerprint() in self.fingerprints

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
    if hop.host_key is not None:
        return Trust(frozenset({hop.host_key.rstrip("=")}), pinned=True)
    known = asyncssh.SSHKnownHosts()
    for path in hop.known_hosts:
        _load(known, path)
    name = hop.host_key_alias or hop.host
    # OpenSSH writes hosts behind another port as [host]:port, and those stand for nothing else.
    if hop.port != DEFAULT_PORT and not hop.host_key_alias:
        name = f"[{name}]:{hop.port}"
    keys, authorities, revoked, *_ = known.match(name, "", None)
    families = tuple(dict.fromkeys(key.get_algorithm() for key in keys if key.get_algorithm() in FAMILIES))
    return Trust(
        frozenset(key.get_fingerprint() for key in keys), families, tuple(authorities), tuple(revoked), pinned=False
    )


def _load(known: asyncssh.SSHKnownHosts, path: Path) -> None:
    """Add a known_hosts file. Lines that make no sense are left out, as ssh does: they can only trust less."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return  # a file that cannot be read trusts nobody
    for line in text.splitlines():
        try:
            known.load(line)
        except ValueError:
            continue


def refusal(hop: Hop, trust: Trust, offered: list[HostKey], reason: str) -> RefusedError:
    """Why a host key was refused. offered: what the server showed; reason: asyncssh's words when it showed nothing."""
    got = offered[0] if offered else None
    details: dict[str, object] = {"host": hop.address}
    if got is not None:
        details |= {"got": got.fingerprint, "algorithm": got.algorithm}
    if trust.is_empty and not trust.revoked and got is not None:
        return RefusedError(
            ErrorCode.HOST_KEY_UNKNOWN,
            f"the host key of {hop.name} is not known: {got.algorithm} {got.fingerprint}",
            hint=_how_to_pin(hop, got),
            details={"host": hop.address, "fingerprint": got.fingerprint, "algorithm": got.algorithm},
        )
    expected = sorted(trust.fingerprints)
    details["expected"] = expected[0] if len(expected) == 1 else expected
    if got is None:
        details["reason"] = reason
    where = "the inventory pins" if trust.pinned else "known_hosts says"
    return RefusedError(
        ErrorCode.HOST_KEY_MISMATCH,
        f"the host key of {hop.name} is not the one that {where}: somebody may be listening in",
        hint="if the machine was set up anew, compare the fingerprint there with `ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub`, then " + _how_to_replace(hop, pinned=trust.pinned),
        details=details,
    )


def _how_to_pin(hop: Hop, got: HostKey) -> str:
    compare = "compare it with the machine's own (there: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then "
    if hop.in_inventory:
        identity = f" --identity {shlex.quote(str(hop.identities[0]))}" if hop.explicit_identity else ""
        return (
            f'{compare}put host_key = "{got.fingerprint}" into its table of the inventory, '
            f"or: rbee nodes remove {hop.name}; rbee nodes add {hop.name} {hop.target}{identity}"
        )
    return f"{compare}let ssh remember it: ssh {hop.name} true"


def _how_to_replace(hop: Hop, *, pinned: bool) -> str:
    if pinned:
        return f"change host_key of {hop.name} in the inventory"
    name = hop.host if hop.port == DEFAULT_PORT else f"[{hop.host}]:{hop.port}"
    return f"remove the remembered key: ssh-keygen -R '{name}'"
