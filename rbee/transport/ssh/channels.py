"""What runs over an open SSH connection: shells, files, and streams to sockets.

Rules
- The login shell sees `exec /bin/sh` and nothing else, in a session that `sessions` opens.
- A stream is an SSH channel to the socket where sshd allows that, else the node's `pipe` command in a shell. OpenSSH
  gives one answer for "forbidden" and "nobody listens", so only the pipe can tell them apart.
- Everything asyncssh raises here becomes an `RbeeError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import asyncssh

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.transport.connection import ConnectTimings, OnBytes, SocketAccess, Stream, quote
from rbee.transport.markers import MAX_NOISE, checked, new_nonce, prints_without_end
from rbee.transport.script import Shell, ShellConnection, Stderr, lost, read_before, start_by
from rbee.transport.ssh.sessions import WINDOW, Session, Sessions
from rbee.transport.strict_modes import is_safe
from rbee.transport.upload import Upload, send
from rbee_remote.protocol import ErrorCode, ProtocolError, RemoteError, parse_json

_CHUNK = 2**16
#: Pipes that are started at once. Two hundred that start together would each be as slow as all of them.
_PIPES_AT_ONCE = 8
#: How often a silent connection is asked for a sign of life before it counts as lost.
_QUESTIONS = 2


@contextmanager
def _translated() -> Iterator[None]:
    """A connection or channel that breaks is a ConnectError."""
    try:
        yield
    except (asyncssh.Error, OSError) as error:
        raise lost(error) from error


class SSHShell:
    """A session channel that runs `/bin/sh`."""

    def __init__(self, session: Session) -> None:
        self._process = session.process
        self._ended = session.ended
        self.stderr = Stderr()
        # Unread stderr would fill the channel's window and stop stdout as well.
        self._draining = asyncio.create_task(self._drain_stderr(), name="ssh stderr")

    async def write(self, data: bytes) -> None:
        with _translated():
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def write_eof(self) -> None:
        with suppress(OSError):
            self._process.stdin.write_eof()

    async def read(self, max_bytes: int) -> bytes:
        with _translated():
            return await self._process.stdout.read(max_bytes)

    async def wait(self) -> int:
        with _translated():
            await self._process.wait_closed()
        with suppress(asyncssh.Error, OSError):
            await self._draining
        if self._process.exit_signal is not None:
            return -15
        if self._process.exit_status is None:
            raise lost("the command ended without an exit status")
        return self._process.exit_status

    async def aclose(self) -> None:
        self._process.close()
        self._ended()
        self._draining.cancel()
        await asyncio.gather(self._draining, return_exceptions=True)

    async def _drain_stderr(self) -> None:
        with suppress(asyncssh.Error, OSError):  # the reader of stdout hears of it too
            while data := await self._process.stderr.read(_CHUNK):
                self.stderr.feed(data)
        self.stderr.end()


class SSHStream:
    """A channel straight to a socket on the node."""

    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int) -> bytes:
        with _translated():
            return await self._reader.read(max_bytes)

    async def write(self, data: bytes) -> None:
        with _translated():
            self._writer.write(data)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()


class PipeStream:
    """A shell that has become the `pipe` command."""

    def __init__(self, shell: Shell, first: bytes) -> None:
        self._shell = shell
        self._first = first

    async def read(self, max_bytes: int) -> bytes:
        if self._first:
            data, self._first = self._first[:max_bytes], self._first[max_bytes:]
            return data
        return await self._shell.read(max_bytes)

    async def write(self, data: bytes) -> None:
        await self._shell.write(data)

    async def aclose(self) -> None:
        await self._shell.aclose()


class SSHConnection(ShellConnection):
    """A `Connection` over SSH."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        another: Callable[[], Awaitable[asyncssh.SSHClientConnection]],
        timings: ConnectTimings,
        *,
        keeper_id: str,
        access: SocketAccess,
    ) -> None:
        """another: opens one more connection to the same server, and closes it when this one ends."""
        self.timings = timings
        self._access = access
        self._connection = connection
        self._sessions = Sessions(connection, another)
        self._keeper_id = keeper_id
        self._starting = asyncio.Semaphore(_PIPES_AT_ONCE)
        self._forwards = False  # whether a channel to a socket has been opened on this connection

    @property
    def access(self) -> SocketAccess:
        return self._access

    def use_pipe(self, command: tuple[str, ...]) -> None:
        self._access = replace(self._access, pipe_command=command)

    def try_forwarding(self) -> None:
        self._access = replace(self._access, transport="forward")

    @property
    def is_closed(self) -> bool:
        return self._connection.is_closed()

    async def is_alive(self, within_s: float) -> bool:
        """As `Connection.is_alive`, by the request that keepalive sends: asyncssh has no public name for it, and
        a channel that is opened for nothing would stand in the log of the server."""
        try:
            async with asyncio.timeout(within_s):
                await self._connection._make_global_request(b"keepalive@openssh.com")
        except (asyncssh.Error, OSError):  # TimeoutError is one
            return False
        return not self._connection.is_closed()

    async def open_shell(self) -> SSHShell:
        return SSHShell(await self._sessions.open())

    async def put(
        self, source: Path | bytes, target: str, *, sha256: str, mode: int = 0o600, on_bytes: OnBytes | None = None
    ) -> None:
        """As `Connection.put`."""
        upload = Upload.of(source, target, sha256=sha256, mode=mode, keeper_id=self._keeper_id)
        await send(self, upload, on_bytes)

    async def open_stream(self, socket: str) -> Stream:
        """As `Connection.open_stream`."""
        if self._access.transport == "pipe" and self._access.pipe_command is not None:
            return await self._pipe(socket, self._access.pipe_command)
        try:
            return await self._forward(socket)
        except asyncssh.ChannelOpenError as error:
            return await self._instead(socket, error)

    async def until_lost(self, silence_s: float) -> None:
        """As `Connection.until_lost`."""
        # asyncssh asks after each interval without a byte, and gives up one interval after the last question.
        self._connection.set_keepalive(interval=silence_s / (_QUESTIONS + 1), count_max=_QUESTIONS)
        await self._connection.wait_closed()

    async def _forward(self, socket: str) -> Stream:
        """Raises asyncssh.ChannelOpenError, ConnectError."""
        try:
            reader, writer = await self._connection.open_unix_connection(socket, encoding=None, window=WINDOW)
        except asyncssh.ChannelOpenError as error:
            # asyncssh gives sshd's own answer for a connection that is lost; its clean-up may still be one turn away.
            await asyncio.sleep(0)
            if self._connection.is_closed():
                raise lost(error) from error
            if error.code == asyncssh.OPEN_CONNECT_FAILED or error.code in _FORBIDDEN:
                raise
            raise lost(error) from error
        except (asyncssh.Error, OSError) as error:
            raise lost(error) from error
        self._forwards = True
        self.try_forwarding()
        return SSHStream(reader, writer)

    async def _instead(self, socket: str, error: asyncssh.ChannelOpenError) -> Stream:
        """No channel to `socket` was opened: is it the socket, or sshd that forbids it?"""
        forbidden, command = error.code in _FORBIDDEN, self._access.pipe_command
        if not forbidden and (self._forwards or command is None):
            raise _nobody_listens(socket) from error
        if command is None:
            raise NodeError(
                ErrorCode.BOOTSTRAP_FAILED,
                "the node's sshd forbids forwarding to sockets, and rbee's own pipe is not there yet",
                hint="set AllowStreamLocalForwarding in its sshd_config, or let rbee set the node up: rbee nodes check",
                details={"reason": error.reason},
            ) from error
        stream = await self._pipe(socket, command)
        if not forbidden:
            # The pipe got through. Either sshd forbids forwarding, or the socket came in between: ask once more.
            with suppress(asyncssh.ChannelOpenError):
                forwarded = await self._forward(socket)
                await stream.aclose()
                return forwarded
        self._access = replace(self._access, transport="pipe")
        return stream

    async def _pipe(self, socket: str, command: tuple[str, ...]) -> PipeStream:
        async with self._starting:
            return await self._started_pipe(socket, command)

    async def _started_pipe(self, socket: str, command: tuple[str, ...]) -> PipeStream:
        nonce = new_nonce()
        words = " ".join(quote(word) for word in (*command, socket, "--ready"))
        shell = await self.open_shell()
        try:
            # An echo of this line is not the answer: there, a quote stands before the end of the line.
            with suppress(ConnectError):  # a shell that has ended already says why to whoever reads
                await shell.write(checked(_still_ours(command), f"{words} '{nonce}'"))
            return PipeStream(shell, await _until_ready(shell, socket, f"{nonce}\n".encode()))
        except BaseException:
            await shell.aclose()
            raise


def _still_ours(command: Sequence[str]) -> str:
    """Whether the home that `command` was remembered from still is this user's: on a shared disk it can have been
    cleaned away and made again by somebody else."""
    home = next((word.rpartition("/payloads/")[0] for word in command if "/payloads/" in word), "")
    return is_safe(home) if home else ":"


_FORBIDDEN = (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE)


async def _until_ready(shell: SSHShell, socket: str, ready: bytes) -> bytes:
    """What came after the line that says that the pipe stands. Raises what the pipe says when it does not."""
    said, deadline = b"", start_by()
    while ready not in said and len(said) < MAX_NOISE:
        data = await read_before(deadline, shell, said)
        if not data:
            raise _pipe_failed(await shell.wait(), socket, said, shell.stderr.last_line)
        said += data
    _, found, first = said.partition(ready)
    if not found:
        raise prints_without_end()
    return first


def _pipe_failed(status: int, socket: str, said: bytes, stderr: str) -> RbeeError:
    for line in (*said.decode(errors="replace").splitlines()[-1:], stderr):
        with suppress(ProtocolError):
            body = parse_json(line)
            if isinstance(body, dict) and "error" in body:
                return NodeError.from_remote(RemoteError.decode(body))
    if status in (2, 126, 127):  # Python found no payload, or the shell no Python: bootstrap makes them anew
        return _nobody_listens(socket)
    return NodeError(
        ErrorCode.BOOTSTRAP_FAILED,
        "the pipe to the node's socket does not work",
        details={"status": status, "said": stderr},
    )


def _nobody_listens(socket: str) -> NodeError:
    return NodeError(ErrorCode.WORKER_GONE, f"nobody listens at {socket} on the node")
