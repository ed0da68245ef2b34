"""This machine as a node: the same scripts, files and streams, without SSH."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import signal
import socket as sockets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from rbee.base.errors import ConnectError, NodeError
from rbee.base.retries import LOCAL_QUEUE_PAUSE_S, LOCAL_QUEUE_S
from rbee.transport.connection import ConnectTimings, OnBytes, SocketAccess, Stream
from rbee.transport.script import ShellConnection, Stderr, lost
from rbee.transport.upload import PIECE, Upload, disk_full
from rbee_remote.protocol import SECRET_VARIABLE, ErrorCode
from rbee_remote.protocol.peer import is_ours

_CHUNK = 2**16
_PATIENCE = 2.0


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise lost(error) from error


class LocalShell:
    """A child process `/bin/sh` in a session of its own, so that it can be ended with all its children."""

    def __init__(self, transport: asyncio.SubprocessTransport, process: asyncio.subprocess.Process) -> None:
        self._transport = transport
        self._process = process
        self.stderr = Stderr()
        self._draining = asyncio.create_task(self._drain_stderr(), name="local stderr")

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with _translated():
            self._process.stdin.write(data)
            await self._process.stdin.drain()

    def write_eof(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    async def read(self, max_bytes: int) -> bytes:
        assert self._process.stdout is not None
        with _translated():
            return await self._process.stdout.read(max_bytes)

    async def wait(self) -> int:
        status = await self._process.wait()
        await self._draining
        return status

    async def aclose(self) -> None:
        if self._process.returncode is None:
            await self._end()
        self._draining.cancel()
        await asyncio.gather(self._draining, return_exceptions=True)
        self._transport.close()

    async def _end(self) -> None:
        """The end of stdin ends a script that still runs, and leaves one alone that is just done; then by force."""
        self.write_eof()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                if number is not None:
                    os.killpg(self._process.pid, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._process.wait()
                    return

    async def _drain_stderr(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(_CHUNK):
            self.stderr.feed(data)
        self.stderr.end()


class LocalStream:
    """A unix socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, max_bytes: int) -> bytes:
        with _translated():
            try:
                return await self._reader.read(max_bytes)
            except (
                BrokenPipeError,
                ConnectionResetError,
            ):  # the peer ended with something of ours unread: on a socket of this machine
                return b""  # that is a hang-up, no connection is lost

    async def write(self, data: bytes) -> None:
        with _translated(), suppress(BrokenPipeError, ConnectionResetError):  # a hang-up: whoever reads finds out
            self._writer.write(data)
            await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class LocalConnection(ShellConnection):
    """A `Connection` to this machine."""

    timings = ConnectTimings(0.0, 0.0)
    access = SocketAccess()
    is_closed = False

    def __init__(self, *, keeper_id: str) -> None:
        self._keeper_id = keeper_id

    def use_pipe(self, command: tuple[str, ...]) -> None:
        """Sockets of this machine are opened as they are."""

    def try_forwarding(self) -> None:
        """As `use_pipe`."""

    async def is_alive(self, within_s: float) -> bool:
        """This machine is there."""
        del within_s
        return True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to close."""

    async def open_shell(self) -> LocalShell:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.subprocess_exec(
            lambda: asyncio.subprocess.SubprocessStreamProtocol(limit=2**16, loop=loop),
            "/bin/sh",
            env={name: value for name, value in os.environ.items() if not SECRET_VARIABLE.search(name)},
            cwd="/",  # version managers let files in the current folder say which `python3` is run
            start_new_session=True,
        )
        return LocalShell(transport, asyncio.subprocess.Process(transport, protocol, loop))

    async def put(
        self, source: Path | bytes, target: str, *, sha256: str, mode: int = 0o600, on_bytes: OnBytes | None = None
    ) -> None:
        """As `Connection.put`. A copy is faster than finding out what of a part is right, so none is continued."""
        upload = Upload.of(source, target, sha256=sha256, mode=mode, keeper_id=self._keeper_id)
        # Two copies at once of one keeper must not share a part here.
        part = Path(f"{upload.part}-{os.getpid()}-{time.monotonic_ns()}")
        try:
            with _removed_at_end(part):
                await _copy(upload, part, on_bytes)
        except OSError as error:
            raise _not_written(upload, error) from error

    async def until_lost(self, silence_s: float) -> None:  # noqa: ARG002 - a connection's signature
        """This machine is not lost."""
        await asyncio.get_running_loop().create_future()

    async def open_stream(self, socket: str) -> Stream:
        """As `Connection.open_stream`."""
        try:
            return LocalStream(*await asyncio.open_unix_connection(sock=await _connected(socket)))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NodeError(ErrorCode.WORKER_GONE, f"nobody listens at {socket}") from error
        except OSError as error:
            raise NodeError(
                ErrorCode.NODE_UNSUPPORTED,
                f"the socket {socket} cannot be opened",
                hint="it has to belong to you, and its path may have 107 characters at most",
                details={"reason": error.strerror or str(error)},
            ) from error


async def _connected(path: str) -> sockets.socket:
    """Raises OSError, ConnectError where the listener takes nobody in, and NodeError where it is somebody else's.

    By hand, because asyncio takes a socket for connected that a full queue has refused (EAGAIN).
    """
    connection = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        connection.setblocking(False)
        deadline = time.monotonic() + LOCAL_QUEUE_S
        while (code := connection.connect_ex(path)) == errno.EAGAIN and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(LOCAL_QUEUE_PAUSE_S)
        if code == errno.EAGAIN:
            raise ConnectError(ErrorCode.CONNECTION_TIMEOUT, f"the listener at {path} takes no connections")
        if code:
            raise OSError(code, os.strerror(code))
        if not is_ours(connection):
            raise NodeError(ErrorCode.WORKER_GONE, f"another user's process listens at {path}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _removed_at_end(part: Path) -> Iterator[None]:
    try:
        yield
    finally:
        part.unlink(missing_ok=True)


async def _copy(upload: Upload, part: Path, on_bytes: OnBytes | None) -> None:
    """Raises OSError, and NodeError when the content is not the one that was named."""
    digest = hashlib.sha256()
    done = 0
    with upload.open() as source, _create(part) as sink:
        while piece := await asyncio.to_thread(_copy_piece, source, sink, digest):
            done += piece
            if on_bytes is not None:
                on_bytes(done, upload.size)
        if digest.hexdigest() != upload.sha256:
            raise NodeError(
                ErrorCode.BOOTSTRAP_FAILED,
                f"{upload.target} arrived with another SHA-256 than it should have",
                details={"sha256": upload.sha256, "got": digest.hexdigest()},
            )
        await asyncio.to_thread(_put_in_place, sink, part, upload)


def _create(part: Path) -> BinaryIO:
    part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _copy_piece(source: BinaryIO, sink: BinaryIO, digest: hashlib._Hash) -> int:
    piece = source.read(PIECE)
    sink.write(piece)
    digest.update(piece)
    return len(piece)


def _put_in_place(sink: BinaryIO, part: Path, upload: Upload) -> None:
    sink.flush()
    os.fsync(sink.fileno())
    os.fchmod(sink.fileno(), upload.mode)
    part.replace(upload.target)


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _not_written(upload: Upload, error: OSError) -> NodeError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return disk_full(upload, free=_free_bytes(Path(upload.target).parent))
    return NodeError(
        ErrorCode.BOOTSTRAP_FAILED,
        f"{upload.target} cannot be written",
        hint="check that the home for rbee is on a disk you may write to",
        details={"said": error.strerror or str(error)},
    )
