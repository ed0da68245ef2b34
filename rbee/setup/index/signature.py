"""Signatures of an index of wheels, by OpenSSH's ssh-keygen: a key that signs needs nothing but what SSH has anyway.

A key that lies in an agent signs there: name its .pub file. A passphrase is asked for at the terminal, where there is
one.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.base.errors import ConfigError, UsageError

#: What signatures are for: one that was made for something else does not count.
NAMESPACE = "rbee-wheels"
_WHO = "rbee"


@dataclass(frozen=True, slots=True)
class Signer:
    """A key that signs. file: a private key, or the public one of a key in the agent. public: `ssh-ed25519 AAAA…`."""

    file: Path
    public: str

    @classmethod
    async def of(cls, file: Path) -> Signer:
        """Raises UsageError for a file that is no key, ConfigError where there is no ssh-keygen."""
        beside = file.with_name(f"{file.name}.pub")
        text = ""
        for public in (file, beside):
            if public.is_file():
                text = public.read_bytes()[:65536].decode(errors="replace")
                if text.startswith(("ssh-", "ecdsa-")):
                    break
        else:
            status, text, said = await _run(["-y", "-f", str(file)])
            if status != 0:
                raise UsageError(
                    f"--sign: {file} is not a key that can be used: {_last(said)}",
                    hint='`ssh-keygen -t ed25519 -f wheels-key -N ""` makes one',
                )
        words = text.split()
        if len(words) < 2:
            raise UsageError(f"--sign: {file} is not a key")
        return cls(file, " ".join(words[:2]))

    async def sign(self, content: bytes) -> bytes:
        """The signature. Raises ConfigError."""
        status, signature, said = await _run(["-Y", "sign", "-q", "-f", str(self.file), "-n", NAMESPACE], content)
        if status != 0 or not await self.has_signed(content, signature.encode()):
            raise ConfigError(
                f"ssh-keygen could not sign with {self.file}: {_last(said)}",
                hint="a key with a passphrase signs at a terminal, or by the agent: ssh-add it, and name its .pub file",
            )
        return signature.encode()

    async def has_signed(self, content: bytes, signature: bytes) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            allowed = _written(folder, "allowed", f'{_WHO} namespaces="{NAMESPACE}" {self.public}\n'.encode())
            signed = _written(folder, "signature", signature)
            words = ["-Y", "verify", "-f", allowed, "-I", _WHO, "-n", NAMESPACE, "-s", signed]
            status, _, _ = await _run(words, content)
        return status == 0


async def _run(arguments: Sequence[str], stdin: bytes = b"") -> tuple[int, str, str]:
    """Status, stdout and stderr of ssh-keygen, which asks for a passphrase at the terminal that it shares with us."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise ConfigError("there is no ssh-keygen, which signs", hint="apt install openssh-client, or leave out --sign")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        out, said = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(errors="replace"), said.decode(errors="replace")


def _written(folder: str, name: str, content: bytes) -> str:
    path = Path(folder, name)
    path.write_bytes(content)
    return str(path)


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it says nothing"
