"""The host key of a machine that is to be pinned: what it shows, and whether known_hosts agrees.

Rules
- known_hosts is asked first, as ssh does: a key that differs from the one it has, or that it revokes, is refused.
- The types of key that known_hosts has are asked for first. Otherwise a server whose RSA key is known would show its
  ed25519 key, and the two could not be compared.
- Where known_hosts has an authority for the machine's certificates, it decides, and no key is to be pinned: machines
  with certificates change their keys.
"""

from __future__ import annotations

from dataclasses import dataclass

import asyncssh

from rbee.base.errors import ConnectError
from rbee.transport.ssh.handshake import show_host_key
from rbee.transport.ssh.hops import Hop
from rbee.transport.ssh.hostkeys import HostKey, Trust, known_hosts_of, refusal, trust_of


@dataclass(frozen=True, slots=True)
class Scanned:
    """key: what to pin; None where a certificate decides, when the connection is made. known: known_hosts has it."""

    key: HostKey | None
    known: bool


async def scan(hop: Hop, tunnel: asyncssh.SSHClientConnection | None) -> Scanned:
    """Raises RefusedError HOST_KEY_MISMATCH where known_hosts or the pin of `hop` says otherwise, and as `open_hop`."""
    known = known_hosts_of(hop)
    if known.authorities and hop.host_key is None:
        return Scanned(None, known=True)
    seen = [await show_host_key(hop, tunnel, families=known.families)]
    if known.fingerprints and seen[0].fingerprint not in known.fingerprints:
        raise refusal(hop, known, seen, "")
    key = seen[0] if hop.host_key is None else await _pinned(hop, tunnel, seen)
    if known.refuses(key):
        raise refusal(hop, known, [key], "")
    return Scanned(key, known=known.knows(key))


async def _pinned(hop: Hop, tunnel: asyncssh.SSHClientConnection | None, seen: list[HostKey]) -> HostKey:
    """The key that is pinned, among those that the server has: a fingerprint does not say of which type it is."""
    trust: Trust = trust_of(hop)
    while seen[-1].fingerprint not in trust.fingerprints:
        if not trust.algorithms(without=frozenset(key.algorithm for key in seen)):
            raise refusal(hop, trust, seen, "")
        try:
            seen.append(await show_host_key(hop, tunnel, seen))
        except ConnectError as error:  # nothing more in common, said in one way or another
            raise refusal(hop, trust, seen, error.message) from error
    return seen[-1]
