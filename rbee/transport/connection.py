"""What the keeper asks of a node, whichever way it is reached: run a script, put a file, open a stream to a socket.

Rules
- Scripts are POSIX sh. They reach `/bin/sh` by stdin; the login shell sees one neutral word and nothing of ours.
- The answer is what stands between two markers that carry a nonce; what rc files print is outside them.
- Errors are `RbeeError`s when they leave an implementation: asyncssh's and the OS's are translated there, once.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

#: Called with the bytes that are on the node so far, and the total.
OnBytes = Callable[[int, int], None]

#: Called with a prompt; answers with the passphrase of an encrypted key.
AskPassphrase = Callable[[str], Awaitable[str]]

#: How a stream reaches a socket on the node: an SSH channel to it, or the `pipe` command behind a channel.
Transport = Literal["forward", "pipe"]


@dataclass(frozen=True, slots=True)
class Completed:
    """What a script did. stdout: the bytes between the markers. noise: what the shell printed outside of them."""

    stdout: bytes
    stderr: str
    status: int
    noise: bytes = b""


@dataclass(frozen=True, slots=True)
class SocketAccess:
    """How streams get to the node's sockets, as far as is known. Worth remembering per node.

    transport: what to try first; "pipe" once sshd was found to forbid forwarding. pipe_command: the node's `pipe`
    command without its socket, such as ("/…/bin/python", "-I", "/…/payload.zip", "pipe"); without it, a node that
    forbids forwarding has no streams.
    """

    transport: Transport = "forward"
    pipe_command: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class ConnectTimings:
    """Seconds from the first try to the TCP connection of the last hop, and from there to the end of authentication."""

    connect_s: float
    authenticate_s: float


class Stream(Protocol):
    """A byte stream to a unix socket on the node."""

    async def read(self, max_bytes: int) -> bytes:
        """At least one byte, or b"" at the end. Raises ConnectError when the connection is lost."""

    async def write(self, data: bytes) -> None:
        """Returns when the data is sent or safely buffered. Raises ConnectError when the connection is lost."""

    async def aclose(self) -> None:
        """Idempotent, never raises."""


class Connection(Protocol):
    """An open connection to one node; made by `open_connection`, which also closes it."""

    @property
    def timings(self) -> ConnectTimings: ...

    @property
    def access(self) -> SocketAccess:
        """What it was opened with, and what was learned since."""

    def use_pipe(self, command: tuple[str, ...]) -> None:
        """Let streams go through the node's `pipe` command where sshd forbids forwarding. As `access.pipe_command`."""

    def try_forwarding(self) -> None:
        """Have the next stream try a channel to its socket first, whatever worked last time."""

    @property
    def is_closed(self) -> bool:
        """Whether it is known to be over; False says little."""

    async def is_alive(self, within_s: float) -> bool:
        """Whether the node answers over it in that many seconds: one round trip. Raises nothing of the network's."""

    async def run(self, script: str, *, timeout: float = 60.0) -> Completed:
        """Run a POSIX sh script on the node.

        timeout: seconds for the whole script. Raises ConnectError (timed out or lost); a script that fails is no
        error here: its exit status is in the result.
        """

    def stream_script(self, script: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Run a script and yield its stdout (between the markers) line by line as it comes, without the newline.

        Leaving the context ends the script: its channel is closed, and the script's process gets SIGHUP or SIGTERM.
        """

    async def put(
        self, source: Path | bytes, target: str, *, sha256: str, mode: int = 0o600, on_bytes: OnBytes | None = None
    ) -> None:
        """Put a file at the absolute path `target`: staged beside it, checked by SHA-256, renamed into place.

        sha256: lower-case hex of the whole content. A part left by an earlier try of this keeper is continued.
        Missing folders are made. A target that is there is replaced.
        Raises NodeError (DISK_FULL, BOOTSTRAP_FAILED when it cannot be written or arrives wrong), ConnectError.
        """

    async def open_stream(self, socket: str) -> Stream:
        """Connect to a unix socket on the node.

        Raises NodeError (WORKER_GONE when nobody listens there, BOOTSTRAP_FAILED when sshd forbids forwarding and
        the `pipe` command is not known), ConnectError when the connection is lost.
        """

    async def until_lost(self, silence_s: float) -> None:
        """Return when the connection is lost or closed. silence_s: how long it may be without a sign of life, for which
        the other side is asked from now on."""


def quote(value: str) -> str:
    """`value` as one word of a POSIX shell."""
    return shlex.quote(value)
