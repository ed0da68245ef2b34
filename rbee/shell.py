"""Scripts in a shell on the node: how they are wrapped, and how their answer is found in what comes back.

Rules
- The shell is `/bin/sh` and reads its script from stdin. It may read ahead (dash takes blocks), so a script is one
  compound command, and nothing follows it on stdin before the shell has printed its begin marker.
- Everything before the begin marker is noise, everything up to the end marker is the answer; the end marker carries
  the exit status. The script's text never contains a marker as a whole, so an echo of it is no marker.
- While a script runs, stdin stays open; its end means that nobody waits any more, and the shell ends its process group.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Protocol

from rbee.connection import Completed
from rbee.errors import ConnectError, NodeError
from rbee_remote.protocol import ErrorCode

#: Most bytes that one answer, or the noise before it, may have.
MAX_ANSWER = 16 * 2**20
MAX_NOISE = 2**20

_CHUNK = 2**16
_STDERR_KEPT = 2**16
_STDERR_LAG = 2.0


class Shell(Protocol):
    """A `/bin/sh` on the node that waits for its script."""

    async def write(self, data: bytes) -> None:
        """Send to stdin; returns when there is room for more. Raises ConnectError."""

    def write_eof(self) -> None:
        """End stdin. Idempotent, never raises."""

    async def read(self, max_bytes: int) -> bytes:
        """From stdout; b"" at the end. Raises ConnectError when the connection is lost."""

    async def wait(self) -> int:
        """The exit status, negative for a signal. Raises ConnectError when there is none: the connection was lost."""

    @property
    def stderr(self) -> Stderr: ...

    async def aclose(self) -> None:
        """End what still runs. Idempotent, never raises."""


class Stderr:
    """The last part of what comes on stderr; whoever owns the shell feeds it."""

    def __init__(self) -> None:
        self._kept = b""
        self._ended = False
        self._changed = asyncio.Event()

    def feed(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-_STDERR_KEPT:]
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def until(self, marker: bytes) -> str:
        """What came before `marker`; waits for that a moment, because stderr may lag behind stdout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_STDERR_LAG):
                while marker not in self._kept and not self._ended:
                    self._changed.clear()
                    await self._changed.wait()
        return self._kept.partition(marker)[0].decode(errors="replace")

    @property
    def last_line(self) -> str:
        lines = self._kept.decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else ""


def new_nonce() -> str:
    """32 hex digits that no output contains by chance."""
    return secrets.token_hex(16)


def guarded(script: str, nonce: str) -> bytes:
    """`script` with an empty stdin, between markers, ended with its process group when stdin ends."""
    return f"""{{ printf '%s:%s\\n' rbee-begin {nonce}
exec 3<&0
( while read -r line; do :; done <&3; kill -s TERM -- -$$ || kill -s TERM $$ ) >/dev/null 2>&1 &
( {script}
) </dev/null 3<&-
status=$?; printf '%s:%s\\n' rbee-end {nonce} >&2
printf '%s:%s:%d\\n' rbee-end {nonce} $status; kill $! 2>/dev/null; exit 0
}}
""".encode()


def fed(script: str, nonce: str) -> bytes:
    """`script` between markers, with the stdin that follows once the begin marker was seen."""
    return f"""{{ printf '%s:%s\\n' rbee-begin {nonce}
( {script}
)
printf '%s:%s:%d\\n' rbee-end {nonce} $?; exit 0
}}
""".encode()


class Markers:
    """Finds noise, answer and status in a stream of bytes. Pure: bytes in, bytes out."""

    def __init__(self, nonce: str) -> None:
        self.noise = b""
        self.status: int | None = None
        self.begun = False
        self._begin = f"rbee-begin:{nonce}\n".encode()
        self._end = re.compile(rb"rbee-end:" + nonce.encode() + rb":(\d{1,3})\n")
        self._end_start = f"rbee-end:{nonce}:".encode()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes of the answer that are certain now. What could be the start of a marker is held back."""
        held = self._held + data
        if not self.begun:
            head, found, held = held.partition(self._begin)
            if not found:
                self._held = head
                if len(head) > MAX_NOISE:
                    raise NodeError(ErrorCode.NODE_UNSUPPORTED, "the node's login shell prints without end")
                return b""
            self.begun = True
            self.noise = head
        if self.status is not None:
            self._held = b""
            return b""
        if match := self._end.search(held):
            self.status = int(match[1])
            self.noise += held[match.end() :]
            self._held = b""
            return held[: match.start()]
        keep = self._undecided(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> bytes:
        """The stream ended: whatever was held back is answer after all, or noise when nothing had begun."""
        held, self._held = self._held, b""
        if not self.begun:
            self.noise += held
            return b""
        return held

    def _undecided(self, held: bytes) -> int:
        """How many bytes at the end of `held` may belong to an end marker."""
        start = held.rfind(self._end_start)
        if start >= 0 and len(held) - start <= len(self._end_start) + len("255"):
            return len(held) - start
        for length in range(min(len(held), len(self._end_start) - 1), 0, -1):
            if held.endswith(self._end_start[:length]):
                return length
        return 0


class Answer:
    """The answer of one script, as it comes. Iterate over its pieces, or take it line by line."""

    def __init__(self, shell: Shell, nonce: str) -> None:
        self._shell = shell
        self._markers = Markers(nonce)
        self._stderr_end = f"rbee-end:{nonce}\n".encode()

    @property
    def noise(self) -> bytes:
        return self._markers.noise

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The answer in pieces of any size, up to its end.

        Raises ConnectError when the connection is lost, NodeError NODE_UNSUPPORTED when no shell runs scripts there.
        """
        while self._markers.status is None:
            if piece := await self._more():
                yield piece

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """The answer line by line, without newlines. Raises like `pieces`."""
        buffer = b""
        async for piece in self.pieces():
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                yield line
            if len(buffer) > MAX_ANSWER:
                raise _too_long()
        if buffer:
            yield buffer

    async def whole(self) -> bytes:
        """The answer at once, at most MAX_ANSWER bytes. Raises like `pieces`."""
        answer = bytearray()
        async for piece in self.pieces():
            answer += piece
            if len(answer) > MAX_ANSWER:
                raise _too_long()
        return bytes(answer)

    @property
    def status(self) -> int:
        assert self._markers.status is not None, "the answer was read to its end"
        return self._markers.status

    async def stderr(self) -> str:
        """What the script wrote to stderr, once its answer is whole."""
        return await self._shell.stderr.until(self._stderr_end)

    async def _more(self) -> bytes:
        if data := await self._shell.read(_CHUNK):
            return self._markers.feed(data)
        status = await self._shell.wait()
        rest = self._markers.finish()
        if not self._markers.begun:
            raise _no_shell(status, self._markers.noise, self._shell.stderr.last_line)
        # The shell itself was ended, by a signal or by the script: what came is the answer.
        self._markers.status = 128 - status if status < 0 else status or 255
        return rest


def _too_long() -> NodeError:
    return NodeError(ErrorCode.BOOTSTRAP_FAILED, f"the node's answer is longer than {MAX_ANSWER // 2**20} MiB")


def _no_shell(status: int, noise: bytes, stderr: str) -> NodeError:
    lines = noise.decode(errors="replace").strip().splitlines()
    return NodeError(
        ErrorCode.NODE_UNSUPPORTED,
        "the login shell of this account runs no commands",
        hint="give the account a login shell such as /bin/sh; a forced command in authorized_keys also has this effect",
        details={"status": status, "said": stderr or (lines[-1][:200] if lines else "")},
    )


def lost(error: BaseException | str) -> ConnectError:
    """The connection is gone; `error` says how."""
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        "the connection to the node was lost",
        hint="what runs on the node goes on; try again",
        details={"reason": str(error) or type(error).__name__},
    )


class ShellConnection(ABC):
    """Running scripts, for every connection that can open a shell."""

    @abstractmethod
    async def open_shell(self) -> Shell:
        """A fresh `/bin/sh`. Raises ConnectError."""

    async def run(self, script: str, *, timeout: float = 60.0) -> Completed:
        """As `Connection.run`."""
        try:
            async with asyncio.timeout(timeout), self._answer(guarded, script) as (_, answer):
                stdout = await answer.whole()
                return Completed(stdout, await answer.stderr(), answer.status, answer.noise)
        except TimeoutError as error:
            raise ConnectError(
                ErrorCode.CONNECTION_TIMEOUT,
                f"a command on the node did not end within {timeout:g} s",
                hint="the node may be overloaded, or its file system may hang",
            ) from error

    @asynccontextmanager
    async def stream_script(self, script: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """As `Connection.stream_script`."""
        async with self._answer(guarded, script) as (_, answer), aclosing(answer.lines()) as lines:
            yield lines

    @asynccontextmanager
    async def feed_script(self, script: str) -> AsyncIterator[tuple[Shell, AsyncIterator[bytes]]]:
        """Run a script that reads stdin: a shell to write to, after the first line of the answer has come."""
        async with self._answer(fed, script) as (shell, answer), aclosing(answer.lines()) as lines:
            yield shell, lines

    @asynccontextmanager
    async def _answer(self, wrap: Callable[[str, str], bytes], script: str) -> AsyncIterator[tuple[Shell, Answer]]:
        """Start a script, wrapped by `guarded` or `fed`; at the end its shell is closed, done or not."""
        nonce = new_nonce()
        shell = await self.open_shell()
        try:
            await shell.write(wrap(script, nonce))
            yield shell, Answer(shell, nonce)
        finally:
            await shell.aclose()
