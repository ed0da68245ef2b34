"""The link's server: a unix socket in rbee's home, and the commands that come over it.

Rules
- One for each home, by a kernel lock; who has the lock may replace the socket that lies there.
- It serves this user, and this code: another rbee's client goes directly, and a holder makes room.
- A client that is gone has its command canceled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rbee.base.errors import ConfigError, ConnectError, ElsewhereError, RbeeError
from rbee.base.locks import held_at_once
from rbee.base.settings import make_private_folder
from rbee.context import Context
from rbee.inventory import Node
from rbee.link import place
from rbee.link.messages import HEARTBEAT_S, LONGEST, LinkError, line, parsed
from rbee.link.session import Session, Terminal
from rbee.node.pool import Pool

#: Runs a command line for a client and returns its exit status; `None` as the session is for getting ready.
#: Raises ElsewhereError where it cannot be done here.
Commands = Callable[[list[str], Session | None], int]

#: At once; a client beyond that goes directly.
MOST_COMMANDS = 16
#: Clients connected at once, whatever they say.
MOST_CLIENTS = 64
#: For the first line of a client.
FIRST_LINE_S = 5.0
#: For commands to clean up at the end.
END_S = 6.0
#: For another server to end, where this one is to take its place.
REPLACE_S = 3.0
#: Before a node is connected to again that could not be reached.
FAILED_S = 30.0
#: After a node was asked for that is not held, before it is connected to: the client's own connection comes first.
HOLD_AFTER_S = 0.5


class LinkTakenError(ConfigError):
    """Another process is this home's link."""


class LinkServer:
    """context: whose home it is, and how nodes that clients asked for are connected to. commands: runs them.

    persist_s: a holder's, after whose last use it ends; None for a gateway, which takes a holder's place. A holder's
    `asked_to_end` is set by a client of another version, and by `rbee link stop`. serving: what a gateway says of its
    requests to who asks for the status.
    Used as `async with`, which raises LinkTakenError, ConfigError.
    """

    def __init__(
        self,
        context: Context,
        pool: Pool,
        commands: Commands,
        *,
        persist_s: float | None = None,
        serving: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.asked_to_end = asyncio.Event()
        self.last_used = time.monotonic()
        self._context, self._pool, self._commands = context, pool, commands
        self._persist_s = persist_s
        self._serving = serving
        self._home = str(context.settings.home)
        self._held = ExitStack()
        self._code, self._environment = place.code(), place.environment()
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._sessions: set[Session] = set()
        self._holding: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._threads = ThreadPoolExecutor(MOST_COMMANDS, thread_name_prefix="link")
        self._began = time.time()

    # --- begin and end ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._take_lock()
            await asyncio.get_running_loop().run_in_executor(self._threads, self._commands, [], None)
            self._server = await asyncio.start_unix_server(self._accept, sock=self._listen(), limit=LONGEST)
        except BaseException:
            self._held.close()
            self._threads.shutdown(wait=False)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        if self.is_in_place():
            with contextlib.suppress(OSError):
                self._socket.unlink()
        for session in self._sessions:
            session.cancel()
        if self._sessions:
            await asyncio.wait(self._clients, timeout=END_S)
        tasks = [*self._clients, *self._holding.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False)
        self._held.close()

    @property
    def is_busy(self) -> bool:
        """Whether a command runs, or a node is being connected to."""
        return bool(self._sessions or self._holding)

    @property
    def running(self) -> int:
        """Commands that run."""
        return len(self._sessions)

    async def drain(self) -> None:
        """Take no command any more; returns when none runs."""
        self.asked_to_end.set()
        while self._sessions:
            await asyncio.wait(self._clients, return_when=asyncio.FIRST_COMPLETED)

    def idle_s(self) -> float:
        """Seconds since something was last done here."""
        return 0.0 if self.is_busy else time.monotonic() - self.last_used

    def is_in_place(self) -> bool:
        """Whether clients still find it: the home may have been removed, or somebody removed the socket."""
        try:
            found = self._socket.stat()
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    @property
    def _socket(self) -> Path:
        return Path(self._home, place.FOLDER, place.SOCKET)

    async def _take_lock(self) -> None:
        """Raises LinkTakenError, ConfigError."""
        folder = Path(self._home, place.FOLDER)
        make_private_folder(folder)
        until = time.monotonic() + (REPLACE_S if self._persist_s is None else 0)
        while not self._held.enter_context(held_at_once(folder / place.LOCK)):
            if time.monotonic() >= until:
                raise LinkTakenError(f"another rbee holds the link in {folder}", hint="`rbee link stop` ends it")
            from rbee.link.client import ask

            await asyncio.to_thread(ask, "stop")
            await asyncio.sleep(0.05)

    def _listen(self) -> socket.socket:
        """Raises ConfigError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with place.Folder(self._home) as path:
                with contextlib.suppress(FileNotFoundError):
                    self._socket.unlink()
                listener.bind(path)
            self._socket.chmod(0o600)
            listener.listen(MOST_CLIENTS)
            found = self._socket.stat()
        except OSError as error:
            listener.close()
            raise ConfigError(f"cannot listen at {self._socket}: {error.strerror}") from error
        self._inode = (found.st_dev, found.st_ino)
        return listener

    # --- one client ---------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            is_ours = place.peer(writer.get_extra_info("socket"))[1] == os.geteuid()
            if is_ours and len(self._clients) <= MOST_CLIENTS:
                await self._talk(reader, writer)
        except (LinkError, OSError, TimeoutError, ValueError):
            pass  # whoever it was, nothing was begun
        except asyncio.CancelledError:
            pass  # the server ends
        finally:
            self._clients.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(FIRST_LINE_S):
            request = parsed(await reader.readline())
        if "ask" in request:
            writer.write(line(self._answer(request["ask"])))
        elif why := self._obstacle(request):
            writer.write(line({"direct": why}))
        else:
            await self._command(request, reader, writer)
        await writer.drain()

    def _answer(self, question: Any) -> dict[str, Any]:
        if question == "stop":
            if self._persist_s is None:
                return {"lasts": os.getpid()}
            self.asked_to_end.set()
            return {"stopping": os.getpid()}
        held = [{"node": one.node, "since_s": one.since_s, "idle_s": one.idle_s} for one in self._pool.held()]
        return {
            "status": {
                "pid": os.getpid(),
                "gateway": self._persist_s is None,
                "since": self._began,
                "commands": len(self._sessions),
                "left_s": None if self._persist_s is None else max(0.0, self._persist_s - self.idle_s()),
                "held": held,
                "serving": self._serving() if self._serving else None,
            }
        }

    def _obstacle(self, request: dict[str, Any]) -> str:
        """Why a command cannot be done here at all, "" for nothing."""
        if request.get("code") != self._code or place.code() != self._code:
            if self._persist_s is not None:
                self.asked_to_end.set()
            return "it is another rbee"
        if request.get("environment") != self._environment:
            return "its environment is another"
        if len(self._sessions) >= MOST_COMMANDS or self.asked_to_end.is_set():
            return "there is no room"
        return ""

    async def _command(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            words = [str(word) for word in request["words"]]
            ends = (Terminal.read(request["out"]), Terminal.read(request["err"]))
            session = Session(writer, self._pool, Path(request["folder"]), *ends)
        except (AttributeError, TypeError, LookupError) as error:
            raise LinkError("it asks for nothing that is known") from error
        self._sessions.add(session)
        listening = asyncio.create_task(_listen_to(session, reader, writer), name="link: listen to a client")
        try:
            session.over(await self._run(words, session))
        finally:
            self._sessions.discard(session)
            self.last_used = time.monotonic()
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        if session.missing is not None:
            self.hold(*session.missing, after_s=HOLD_AFTER_S)

    async def _run(self, words: list[str], session: Session) -> int | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._commands, words, session)
        except (ElsewhereError, Exception):  # what is a bug here is found, and told, where it is run directly
            return None

    # --- nodes --------------------------------------------------------------------------------------------------

    def hold(self, node: Node, pool: Pool | None = None, *, after_s: float = 0.0) -> None:
        """Connect to a node in the background. One that failed is left alone for a while, one that refused for good:
        servers punish those who come again. pool: with the inventory that says how it is reached."""
        if node.name in self._holding or time.monotonic() < self._not_before.get(node.name, 0.0):
            return
        task = asyncio.create_task(self._hold(node, pool or self._pool, after_s), name=f"hold {node.name}")
        self._holding[node.name] = task
        task.add_done_callback(lambda _: self._holding.pop(node.name, None))

    async def _hold(self, node: Node, pool: Pool, after_s: float) -> None:
        await asyncio.sleep(after_s)
        try:
            await pool.hold(node)
        except ConnectError:
            self._not_before[node.name] = time.monotonic() + FAILED_S
        except RbeeError:
            self._not_before[node.name] = float("inf")


async def _listen_to(session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What the client says while its command runs; and that the server is alive, to who waits."""
    beating = asyncio.create_task(_beat(session, writer), name="link: heartbeat")
    try:
        while data := await reader.readline():
            session.hear(parsed(data))
    except (LinkError, OSError, ValueError, TypeError):
        pass  # as good as gone
    finally:
        beating.cancel()
    session.gone()


async def _beat(session: Session, writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        await asyncio.sleep(HEARTBEAT_S)
        if session.is_begun:
            writer.write(line({"alive": True}))
