"""One command that is run here for a client: what it sees of the world is the client's.

Rules
- The command runs in a thread of its own, its use cases on the server's loop, where the connections are.
- What it writes is held back until the client said "go" and the connection was found to work: until then it can be left
  to the client.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rbee.base.errors import ElsewhereError
from rbee.base.events import Emit
from rbee.context import Context
from rbee.inventory import Node
from rbee.link.messages import line
from rbee.node.pool import Pool
from rbee.transport.reconnecting import ReconnectingConnection

T = TypeVar("T")

#: Bytes that a client may leave unread before it counts as gone.
MOST_UNREAD = 32 * 2**20
#: For "go" to come after "accepted".
GO_S = 2.0


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a client's output is. columns: its width, None where it is no terminal. environ: variables for terminals."""

    terminal: bool
    encoding: str
    columns: int | None
    environ: dict[str, str]

    @classmethod
    def read(cls, data: Any) -> Terminal:
        """Raises KeyError, TypeError, AttributeError, LookupError, ValueError for what is none."""
        "".encode(data["encoding"])
        environ = {str(name): str(value) for name, value in data["environ"].items()}
        columns = int(data["columns"]) if data["columns"] else None
        return cls(bool(data["terminal"]), str(data["encoding"]), columns, environ)


class ClientStream(io.TextIOBase):
    """stdout or stderr of the client, as a renderer writes it. columns, environ: as of `Terminal`."""

    def __init__(self, session: Session, name: str, terminal: Terminal) -> None:
        self._session, self._name, self._terminal = session, name, terminal
        self.columns, self.environ = terminal.columns, terminal.environ

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._terminal.encoding

    def isatty(self) -> bool:
        return self._terminal.terminal

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Raises OSError where the client said that it cannot write, and where it does not read. Who was told so once
        may write on, to nowhere, as after a `render.Output` gave up its stream: the other one tells of it."""
        self._session.say(self._name, text)
        return len(text)


class Session:
    """folder: where the client is. Made on the server's loop; the command's thread uses `streams`, `standard_input`,
    `run`, `use` and `context`."""

    def __init__(self, writer: asyncio.StreamWriter, pool: Pool, folder: Path, out: Terminal, err: Terminal) -> None:
        self.folder = folder
        self.streams = (ClientStream(self, "out", out), ClientStream(self, "err", err))
        #: The node that was asked for and is not held, and what would reach it.
        self.missing: tuple[Node, Pool] | None = None
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._pool = pool
        self._lock = threading.Lock()
        self._unsent: deque[bytes] = deque()
        self._unread = 0
        self._begun = False
        self._wrote = False
        self._accepted: asyncio.Task[None] | None = None
        self._go = asyncio.Event()
        self._input: Future[str | None] | None = None
        #: By stream: errno of what the client could not write; and the streams whose writer was told of it.
        self._failed: dict[str, int] = {}
        self._told: set[str] = set()
        self._canceled = False
        self._task: asyncio.Task[Any] | None = None

    # --- what the client says, on the loop ----------------------------------------------------------------------

    def hear(self, message: dict[str, Any]) -> None:
        """A message of the client's after the first."""
        if "go" in message:
            self._go.set()
        elif "stdin" in message and self._input is not None and not self._input.done():
            text = message["stdin"]
            self._input.set_result(text if isinstance(text, str) else None)
        elif "failed" in message:
            self._failed[str(message.get("of"))] = int(message["failed"])
        elif "cancel" in message:
            self.cancel()

    def cancel(self) -> None:
        """The client does not want it any more; the command cleans up."""
        if self._canceled:
            return
        self._canceled = True
        if self._input is not None and not self._input.done():
            self._input.cancel()
        if self._task is not None:
            self._task.cancel()

    def gone(self) -> None:
        """Nobody reads any more."""
        self._failed = {"out": errno.EPIPE, "err": errno.EPIPE}
        self.cancel()

    @property
    def is_begun(self) -> bool:
        return self._begun

    def over(self, status: int | None) -> None:
        """The last word: an exit status, or None to leave the command to the client."""
        if self._begun and status is not None:
            self._flush()
            self._send({"end": status, "knows": sorted(self._told)})
        elif not self._wrote:
            self._send({"direct": "it cannot be done here"})

    # --- for the command's thread -------------------------------------------------------------------------------

    def standard_input(self) -> bytes | None:
        """What the client's standard input holds, None for a terminal."""
        self._input = Future()
        if self._canceled:  # the client left before it was asked
            self._input.cancel()
        self._loop.call_soon_threadsafe(self._send, {"stdin": True})
        try:
            text = self._input.result()
        except BaseException as error:
            raise ElsewhereError("canceled") from error
        return None if text is None else text.encode()

    def say(self, stream: str, text: str) -> None:
        """An output of the command's, from any thread, in order. Raises OSError as a stream does, once."""
        if stream in self._told:
            return
        number = self._failed.get(stream)
        if number is not None:
            self._told.add(stream)
            raise OSError(number, os.strerror(number))
        data = line({stream: text})
        with self._lock:
            self._unsent.append(data)
            self._unread += len(data)
        if self._unread > MOST_UNREAD:
            self._failed = {"out": errno.EPIPE, "err": errno.EPIPE}
        if self._begun:
            self._loop.call_soon_threadsafe(self._flush)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a use case on the server's loop.

        Raises KeyboardInterrupt where the client canceled it, and ElsewhereError for whatever goes wrong before it
        used a connection: the client finds the same out, and tells and records it.
        """
        done: Future[T] = Future()
        self._loop.call_soon_threadsafe(self._begin, work, done)
        try:
            return done.result()
        except BaseException as error:
            if not self._begun:
                raise ElsewhereError("it did not begin") from error
            if isinstance(error, asyncio.CancelledError):
                raise KeyboardInterrupt from error
            raise

    def context(self, context: Context) -> Context:
        """The same for a use case that is run here: with connections that are held."""
        return replace(context, connections=_Connections(self, self._pool.of(context)))

    # --- connections, on the loop -------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, pool: Pool, node: Node, emit: Emit) -> AsyncIterator[ReconnectingConnection]:
        """A node's connection. The first that a command asks for, or the first several at once, have to be held.

        Raises ElsewhereError where they are not; and as `ConnectionPool.use`.
        """
        if not self._begun:
            if not pool.holds(node):
                self._refuse(node, pool)
            if self._accepted is None:
                self._accepted = self._loop.create_task(self._agree(), name="link: agree with the client")
            await asyncio.shield(self._accepted)
            alive = await pool.is_alive(node)
            if not self._begun:
                if not alive or self.missing is not None:
                    self._refuse(node, pool)
                self._begun = True
                self._send({"begun": True})
                self._flush()
        async with pool.use(node, emit) as connection:
            yield connection

    def _refuse(self, node: Node, pool: Pool) -> None:
        self.missing = self.missing or (node, pool)
        raise ElsewhereError(f"the connection to {node.name} is not held")

    async def _agree(self) -> None:
        await asyncio.sleep(0)  # several nodes are asked at once: each has to be held
        if self.missing is not None:
            raise ElsewhereError("another node is not held")
        self._send({"accepted": os.getpid()})
        try:
            async with asyncio.timeout(GO_S):
                await self._go.wait()
        except TimeoutError as error:
            raise ElsewhereError("the client went another way") from error

    def _begin(self, work: Coroutine[Any, Any, T], done: Future[T]) -> None:
        self._task = self._loop.create_task(work, name="link: a command")
        self._task.add_done_callback(lambda task: _settle(task, done))
        if self._canceled:
            self._task.cancel()

    def _flush(self) -> None:
        if not self._begun:
            return
        with self._lock:
            lines, self._unsent = list(self._unsent), deque()
        if lines and not self._writer.is_closing():
            self._wrote = True
            self._writer.write(b"".join(lines))
        with self._lock:
            self._unread = sum(map(len, self._unsent)) + self._writer.transport.get_write_buffer_size()

    def _send(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(line(message))


@dataclass(frozen=True, slots=True)
class _Connections:
    """The `ConnectionPool` of a command."""

    session: Session
    pool: Pool

    def use(self, node: Node, emit: Emit) -> AbstractAsyncContextManager[ReconnectingConnection]:
        return self.session.use(self.pool, node, emit)

    def of(self, context: Context) -> _Connections:
        return _Connections(self.session, self.pool.of(context))


def _settle(task: asyncio.Task[T], done: Future[T]) -> None:
    if task.cancelled():
        done.set_exception(asyncio.CancelledError())
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())
