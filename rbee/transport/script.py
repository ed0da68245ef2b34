"""Scripts in a shell on the node: started, given what they read, and their answer taken as it comes.

Rules
- What is sent is wrapped by `markers`, and what comes back is taken apart by it.
- While a script runs, stdin stays open; its end means that nobody waits any more, and the shell ends its process group.
- A shell that rc files keep from starting is an error of its own, long before the script's timeout.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Protocol

from rbee.base.errors import ConnectError, NodeError
from rbee.base.retries import SHELL_START_S
from rbee.transport.connection import Completed
from rbee.transport.markers import RC_FILES, Markers, fed, guarded, new_nonce
from rbee_remote.protocol import ErrorCode

#: Most bytes that one answer may have.
MAX_ANSWER = 16 * 2**20

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
        return _last_line(self._kept)


class Answer:
    """The answer of one script, as it comes. Iterate over its pieces, or take it line by line."""

    def __init__(self, shell: Shell, nonce: str) -> None:
        self._shell = shell
        self._markers = Markers(nonce)
        self._stderr_end = f"rbee-end:{nonce}\n".encode()
        self._start_by = start_by()

    @property
    def noise(self) -> bytes:
        return bytes(self._markers.noise)

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The answer in pieces of any size, up to its end.

        Raises ConnectError when the connection is lost or the shell does not start, NodeError NODE_UNSUPPORTED when
        there is none that runs scripts.
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
        if self._markers.begun:
            data = await self._shell.read(_CHUNK)
        else:
            data = await read_before(self._start_by, self._shell, self.noise)
        if data:
            return self._markers.feed(data)
        status = await self._shell.wait()
        rest = self._markers.finish()
        if not self._markers.begun:
            raise _no_shell(status, self.noise, self._shell.stderr.last_line)
        # The shell itself was ended, by a signal or by the script: what came is the answer.
        self._markers.status = 128 - status if status < 0 else status or 255
        return rest


def _too_long() -> NodeError:
    return NodeError(ErrorCode.INVALID_RESPONSE, f"the node's answer is longer than {MAX_ANSWER // 2**20} MiB")


def _no_shell(status: int, noise: bytes, stderr: str) -> NodeError:
    return NodeError(
        ErrorCode.NODE_UNSUPPORTED,
        "the login shell of this account runs no commands, or a forced command runs in their place",
        hint="give the account a login shell such as /bin/sh, and look for ForceCommand in the node's sshd_config and "
        "for command= in authorized_keys",
        details={"status": status, "said": stderr or _last_line(noise)},
    )


def start_by() -> float:
    """Until when, on the loop's clock, a shell that was just opened has to run what it is given."""
    return asyncio.get_running_loop().time() + SHELL_START_S


async def read_before(deadline: float, shell: Shell, noise: bytes) -> bytes:
    """Read from a shell that has not begun yet. noise: what it printed so far. Raises ConnectError after `deadline`."""
    try:
        async with asyncio.timeout_at(deadline):
            return await shell.read(_CHUNK)
    except TimeoutError as error:
        raise ConnectError(
            ErrorCode.CONNECTION_TIMEOUT,
            f"the login shell on the node did not start a command within {SHELL_START_S:g} s",
            hint=f"probably one of {RC_FILES} waits, asks, or starts another shell: have it do so in interactive "
            "shells alone; a ForceCommand in the node's sshd_config also has this effect",
            details={"said": shell.stderr.last_line or _last_line(noise)},
        ) from error


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else ""


def lost(error: BaseException | str) -> ConnectError:
    """The connection is gone; `error` says how."""
    return ConnectError(
        ErrorCode.CONNECTION_LOST,
        "the connection to the node was lost",
        hint="what runs on the node keeps running; try again",
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
            with suppress(ConnectError):  # a shell that has ended already says why to whoever reads
                await shell.write(wrap(script, nonce))
            yield shell, Answer(shell, nonce)
        finally:
            await shell.aclose()
