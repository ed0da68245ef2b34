"""A chat where there is no terminal, or a dumb one: each line is a message or a /word, answers are text on stdout.

Rules
- A message of several lines stands between three quotes, as at a terminal.
- In a pipe the first failure ends the chat with its status: what follows was meant for another answer.
- Nothing is read ahead of the answer but what the pipe holds, and no thread waits for input: Ctrl-C ends at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from rbee.base.errors import RbeeError, UsageError
from rbee.base.events import Event, Notice, PhaseDone, PhaseStarted, Reasoning, Token
from rbee.chat import multiline
from rbee.chat.chat import Chat
from rbee.chat.conversation import Turn
from rbee.chat.interrupt import Interrupted, until_interrupted
from rbee.chat.screen import clipboard
from rbee.chat.screen.editor import edited
from rbee.render import Renderer, Table

PROMPT, MORE = "> ", ". "


class PlainView:
    """A `View` over the command's renderer. is_verbose: phases are told, as `rbee infer` does, and with JSON always."""

    def __init__(self, renderer: Renderer, *, is_json: bool, is_verbose: bool, is_terminal: bool) -> None:
        self._renderer, self._is_json, self._is_terminal = renderer, is_json, is_terminal
        self._shows_phases = is_verbose or is_json
        self._folded = False
        self._ends_line = True

    def __call__(self, event: Event) -> None:
        is_hidden = isinstance(event, PhaseStarted | PhaseDone) and not self._shows_phases
        if isinstance(event, Token) and event.text:
            self._ends_line = event.text.endswith("\n")
        if not is_hidden and not (self._folded and isinstance(event, Reasoning)):
            self._renderer(event)

    def begin(self) -> None:
        """Nothing moves."""

    def end(self) -> None:
        if not self._ends_line and not self._is_json:
            self._renderer.write("\n")
        self._ends_line = True
        self._renderer.close()

    def notice(self, text: str) -> None:
        self._renderer(Notice(text))

    def error(self, error: RbeeError) -> None:
        self._renderer.error(error)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        names = [name.lower() or "marked" for name in header] or ["name", "value"]
        self._renderer.table(Table(tuple(header), rows, [dict(zip(names, row, strict=False)) for row in rows]))

    def text(self, text: str) -> None:
        self._renderer.write(f"{text}\n")

    def turn(self, turn: Turn) -> None:
        if not turn.typed:
            self.text(turn.reasoning)
        elif self._is_terminal:
            self.text(f"{PROMPT}{turn.typed}\n{turn.answer}")

    def fold(self, *, is_folded: bool) -> None:
        self._folded = is_folded

    def copy(self, text: str) -> str:
        taken = clipboard.by_program(text)
        if not taken:
            raise UsageError("there is no clipboard here", hint="`rbee history show` prints a session")
        return taken

    async def edit(self, text: str) -> str:
        if not self._is_terminal:
            raise UsageError("there is no terminal for an editor")
        return await edited(text)


class Lines:
    """Lines of a descriptor, which may be a pipe, a file or a terminal."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = b""
        self._is_over = False

    async def line(self) -> str | None:
        """The next one without its end, None after the last."""
        while b"\n" not in self._held and not self._is_over:
            await self._readable()
            content = os.read(self._descriptor, 65_536)
            self._held += content
            self._is_over = not content
        if not self._held:
            return None
        line, _, self._held = self._held.partition(b"\n")
        return line.removesuffix(b"\r").decode(errors="replace")

    async def message(self, prompt: Prompt) -> str | None:
        """A line, or as many as stand between three quotes; None after the last."""
        prompt(PROMPT)
        text = await self.line()
        while text is not None and multiline.is_open(text):
            prompt(MORE)
            more = await self.line()
            if more is None:
                break
            text = f"{text}\n{more}"
        return text

    def drop(self) -> None:
        """What was read and not used."""
        self._held, self._is_over = b"", False

    async def _readable(self) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(self._descriptor, ready.set)
        except PermissionError:  # a file, which is always readable
            return
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._descriptor)


class Prompt:
    """Shows what is waited for, where somebody looks at it."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown

    def __call__(self, text: str) -> None:
        if self._is_shown:
            sys.stderr.write(text)
            sys.stderr.flush()


async def run_plain(chat: Chat, *, is_terminal: bool) -> int:
    """The exit status. is_terminal: somebody types."""
    lines, prompt = Lines(sys.stdin.fileno()), Prompt(is_shown=is_terminal)
    async with chat:
        chat.prepare()
        while not chat.is_over:
            try:
                reading = lines.message(prompt)
                text = await (until_interrupted(reading) if is_terminal else reading)
            except Interrupted:
                lines.drop()
                prompt("\n")
                continue
            if text is None:
                prompt("\n")
                break
            await chat.take(text)
            if chat.failure and not is_terminal:
                return chat.failure.exit_status
    return 0
