"""The worker's side of `render`: chats go to processes that make prompts of them, with bounds on what that may take.

Rules
- Everything here runs on the event loop's thread; nothing waits for a template but the request that needs it.
- One process serves all as long as it is quick. Who has waited for it for a moment gets another, up to MOST; when
  they are all free again, one stays.
- A process that hits a bound, or says what makes no sense, is ended, and the next request gets another.
- What a process says is a template's word: it is checked, and cut to size.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
from collections.abc import Sequence

import anyio

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError, encode
from rbee_remote.protocol.limits import MAX_TEMPLATE
from rbee_remote.system.command import payload_command
from rbee_remote.system.identity import own_tag
from rbee_remote.worker.engine.interface import LoadedModel
from rbee_remote.worker.templates.answers import blamed, bound, ended, read
from rbee_remote.worker.templates.frames import (
    HEAD_BYTES,
    length_of,
    most_text,
    pack,
)
from rbee_remote.worker.templates.rendered import Rendered

#: Processes at most.
MOST = 4
#: Seconds after which somebody who waits for a process gets one more; a usual chat is rendered in a thousandth.
ANOTHER_AFTER_S = 0.05
#: Seconds until a process that does not even compute, on a machine that stands still, is given up.
WALL_S = 60.0

#: Bytes of an answer that is no prompt.
_MOST_WORDS = 2**14

_log = logging.getLogger("rbee.worker")


class RenderPool:
    """tags: for the command lines of the processes. Closed by `close`."""

    def __init__(self, tags: Sequence[str] = ()) -> None:
        self._command = payload_command("render", *tags, own_tag())
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._count = 0  # those that are being started too
        self._waiting = 0
        self._changed = asyncio.Condition()
        self._starting: asyncio.Task[None] | None = None
        self._told = False  # that the model has no template

    def prepare(self) -> None:
        """Have the first process there before it is needed: it takes a tenth of a second to start."""
        self._count += 1
        self._starting = asyncio.create_task(self._start_first())

    async def close(self) -> None:
        """Every process is gone when it returns, and what is still asked of one fails."""
        if self._starting:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        while self._all:
            await self._all.pop().kill()

    async def render(self, request: GenerateRequest, info: LoadedModel) -> Rendered:
        """The prompt of a request that has messages.

        Raises RemoteError as `ChatTemplate.prompt` does, and MODEL_INVALID for a template that hits a bound."""
        frame = pack(
            {
                "messages": [encode(message) for message in request.messages],
                "tools": list(request.tools.functions),
                "chat": encode(request.chat),
            }
        )
        opening = _opening(info)
        self._tell_missing(request, info)
        process = await self._take()
        try:
            with anyio.fail_after(WALL_S):
                if not process.opened:
                    await process.ask(opening, most=_MOST_WORDS)
                    process.opened = True
                # A character has four bytes at most, and six where JSON writes it as an escape.
                return await process.ask(frame, most=6 * most_text(frame) + _MOST_WORDS)
        except TimeoutError as error:
            raise blamed(request, bound("time", f"takes more than {WALL_S:.0f} s")) from error
        except RemoteError as error:
            raise blamed(request, error) from error
        finally:
            with anyio.CancelScope(shield=True):
                await self._give(process, fit=process.opened and process.fit)

    def _tell_missing(self, request: GenerateRequest, info: LoadedModel) -> None:
        """In the log, once."""
        if info.chat_template is None and not request.chat.template and not self._told:
            self._told = True
            _log.warning("the model has no chat template; ChatML is used, which it may not have been trained for")

    async def _take(self) -> _Process:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ANOTHER_AFTER_S
        async with self._changed:
            self._waiting += 1
            try:
                while not self._idle and not self._may_start(waited=loop.time() >= deadline):
                    left = max(deadline - loop.time(), 0.001) if self._count < MOST else None
                    with anyio.move_on_after(left):
                        await self._changed.wait()
            finally:
                self._waiting -= 1
                self._changed.notify()  # who is canceled as it is woken passes that on, as Python does from 3.13
            while self._idle:
                process = self._idle.pop()
                if process.lives:
                    return process
                self._all.discard(process)  # somebody ended it while nobody needed it
                self._count -= 1
            self._count += 1
        return await self._start()

    def _may_start(self, *, waited: bool) -> bool:
        return self._count == 0 or (waited and self._count < MOST)

    async def _start(self) -> _Process:
        """One that `_count` has in it already. Raises RemoteError INTERNAL."""
        try:
            process = await _Process.start(self._command)
        except BaseException as error:
            await self._forget_one()
            if isinstance(error, OSError):
                raise RemoteError(
                    ErrorCode.INTERNAL, f"cannot start a process for the chat template: {error.strerror}"
                ) from error
            raise
        self._all.add(process)
        return process

    async def _start_first(self) -> None:
        with contextlib.suppress(RemoteError):  # who needs it finds out
            await self._give(await self._start(), fit=True)

    async def _give(self, process: _Process, *, fit: bool) -> None:
        """Back to those who wait; one that is unfit ends, and one more than is needed."""
        async with self._changed:
            if fit and process in self._all and (self._waiting or not self._idle):
                self._idle.append(process)
                self._changed.notify()
                return
        self._all.discard(process)
        await process.kill()
        await self._forget_one()

    async def _forget_one(self) -> None:
        async with self._changed:
            self._count -= 1
            self._changed.notify()


class _Process:
    """One `render`. opened: it has the template. fit: what it said made sense, and it goes on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.opened = False
        self.fit = True

    @classmethod
    async def start(cls, command: Sequence[str]) -> _Process:
        """Raises OSError."""
        return cls(
            await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/"
            )
        )

    async def ask(self, frame: bytes, *, most: int) -> Rendered:
        """The answer. most: bytes of it. Raises RemoteError: what was answered, or which bound was hit."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.fit = False
        try:
            self._process.stdin.write(frame)
            await self._process.stdin.drain()
            length = length_of(await self._process.stdout.readexactly(HEAD_BYTES))
            data = await self._process.stdout.readexactly(length) if length <= most else b""
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise ended(await self._process.wait()) from error
        answer, self.fit = read(data)
        if isinstance(answer, RemoteError):
            raise answer
        return answer

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    async def kill(self) -> None:
        """Where the worker's sandbox lets it signal nobody it ends by itself: with its stdin, or at its bound on time.

        Should even that not be so, it is left to the hive, which ends a worker's whole group."""
        with contextlib.suppress(ProcessLookupError):
            try:
                self._process.kill()
            except PermissionError:
                assert self._process.stdin is not None
                self._process.stdin.close()
        with anyio.move_on_after(WALL_S):
            await self._process.wait()
        transport = getattr(self._process, "_transport", None)
        if transport is not None:
            with contextlib.suppress(PermissionError):
                transport.close()


def _opening(info: LoadedModel) -> bytes:
    texts = {"template": info.chat_template, "bos": info.bos, "eos": info.eos}
    if any(len(text) > MAX_TEMPLATE for text in texts.values() if text):
        raise bound("size", f"has more than {MAX_TEMPLATE} characters")
    return pack({**texts, "special": [*info.special_tokens], "user_defined": [*info.user_defined]})
