"""The keys that are offered to a server, one after the other, and an account of them for when none was accepted.

Order: the keys that are named (from the agent where it holds them, else from their file), then what else the agent
holds, then encrypted files, for which somebody is asked. A file is read only when its turn comes.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from shlex import quote

import asyncssh

from rbee.base.errors import ConfigError, RefusedError
from rbee.base.trusted_files import is_exposed
from rbee.transport.connection import AskPassphrase
from rbee.transport.ssh.hops import Hop
from rbee_remote.protocol import ErrorCode

#: Seconds an agent may take to list its keys. Signing may take longer: some ask their owner.
_AGENT_TIMEOUT = 5.0

_PASSPHRASE_TRIES = 3

#: Offered in this order.
Keys = AsyncGenerator[asyncssh.SSHKeyPair, None]


class Identities:
    """The keys for one hop. tried: what was offered. locked: encrypted files that nobody opened."""

    def __init__(self, hop: Hop, agent_keys: list[asyncssh.SSHKeyPair], ask: AskPassphrase | None) -> None:
        self.tried: list[str] = []
        self.locked: list[Path] = []
        self.skipped: list[str] = []
        self.agent_count = len(agent_keys)
        self._hop = hop
        self._agent_keys = agent_keys
        self._ask = ask

    async def keys(self) -> Keys:
        """Raises ConfigError when the key that the inventory names cannot be read."""
        left = {pair.public_data: pair for pair in self._agent_keys}
        for path in self._hop.identities:
            public = _public_data(path)
            if public is not None and public in left:
                self.tried.append(f"{path} (agent)")
                yield left.pop(public)
                continue
            for pair in await asyncio.to_thread(self._load, path):
                self.tried.append(str(path))
                yield pair
        if not self._hop.identities_only:
            for pair in left.values():
                self.tried.append(f"{pair.get_comment() or pair.get_algorithm()} (agent)")
                yield pair
        if self._ask is None:
            return
        for path in list(self.locked):
            opened = await self._unlock(path, self._ask)
            if opened is not None:
                self.tried.append(str(path))
                yield opened

    def _load(self, path: Path) -> list[asyncssh.SSHKeyPair]:
        """The key in a file, first with its certificates; empty for one that is missing, encrypted or unusable."""
        try:
            _check_private(path)
            return list(asyncssh.load_keypairs(path, certlist=self._certificates()))
        except FileNotFoundError as error:
            if self._hop.explicit_identity:
                raise ConfigError(
                    f"the key {path} does not exist",
                    hint=f"set identity_file of {self._hop.name} to a private key",
                ) from error
        except (OSError, asyncssh.KeyImportError) as error:
            if _is_encrypted(path, error):
                self.locked.append(path)
            elif self._hop.explicit_identity:
                raise ConfigError(
                    f"the key {path} cannot be used: {error}",
                    hint="identity_file has to be a private key that only you can read (chmod 600)",
                ) from error
            else:
                self.skipped.append(f"{path}: {error}")
        return []

    async def _unlock(self, path: Path, ask: AskPassphrase) -> asyncssh.SSHKeyPair | None:
        for _ in range(_PASSPHRASE_TRIES):
            passphrase = await ask(f"Passphrase for {path}: ")
            if not passphrase:
                return None
            try:
                (pair, *_) = await asyncio.to_thread(asyncssh.load_keypairs, path, passphrase)
            except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError):
                continue
            self.locked.remove(path)
            return pair
        return None

    def _certificates(self) -> list[str]:
        return [str(path) for path in self._hop.certificates if path.exists()]

    def refusal(self, methods: list[str]) -> RefusedError:
        """Nothing was accepted. methods: what the server would have taken."""
        hop = self._hop
        details: dict[str, object] = {"user": hop.user, "keys": self.tried, "agent": self.agent_count}
        if self.locked:
            details["encrypted"] = [str(path) for path in self.locked]
        if self.skipped:
            details["skipped"] = self.skipped
        if methods and "publickey" not in methods:
            details["server_accepts"] = methods
            hint = "the server takes no keys for this user: allow PubkeyAuthentication there"
        elif self.locked:
            hint = f"the key is encrypted and nobody could be asked: ssh-add {self.locked[0]}"
        elif not self.tried:
            hint = "no key was found: make one with ssh-keygen, or set identity_file in the inventory"
        else:
            target = quote(f"{hop.user}@{hop.host}")
            hint = f"put the public key into ~/.ssh/authorized_keys there: ssh-copy-id -p {hop.port} {target}"
        return RefusedError(
            ErrorCode.AUTH_FAILED,
            f"{hop.name} did not let user {hop.user} in",
            hint=hint,
            details=details,
        )


@asynccontextmanager
async def open_identities(hop: Hop, ask: AskPassphrase | None) -> AsyncIterator[tuple[Identities, Keys]]:
    """The identities of a hop and their keys, with the agent held open meanwhile."""
    agent, agent_keys = await _open_agent(hop.agent)
    try:
        identities = Identities(hop, agent_keys, ask)
        async with aclosing(identities.keys()) as keys:
            yield identities, keys
    finally:
        if agent is not None:
            agent.close()
            await agent.wait_closed()


async def _open_agent(path: str) -> tuple[asyncssh.SSHAgentClient | None, list[asyncssh.SSHKeyPair]]:
    """An agent that does not answer counts as none."""
    if not path:
        return None, []
    agent = None
    try:
        async with asyncio.timeout(_AGENT_TIMEOUT):
            agent = await asyncssh.connect_agent(path)
            return agent, list(await agent.get_keys())
    except (OSError, ValueError, TimeoutError):
        if agent is not None:
            agent.close()
            await agent.wait_closed()
        return None, []


def _check_private(path: Path) -> None:
    """As ssh does: a private key that others can read is not used. Raises OSError."""
    found = path.stat()
    if is_exposed(found, os.getuid()):
        raise PermissionError(f"others can read it (mode {stat.S_IMODE(found.st_mode):o})")


def _is_encrypted(path: Path, error: Exception) -> bool:
    """Whether a key failed to load for want of a passphrase; asyncssh has no class of its own for that."""
    return isinstance(error, asyncssh.KeyImportError) and "assphrase" in str(error) and path.exists()


def _public_data(path: Path) -> bytes | None:
    """The public half, from the .pub file beside it or from the key file itself, which has it unencrypted."""
    for candidate in (path.with_name(path.name + ".pub"), path):
        try:
            return asyncssh.read_public_key(candidate).public_data
        except (OSError, asyncssh.KeyImportError):
            continue
    return None
