"""Questions to whoever sits at the terminal.

Rules
- One at a time, however many connections want to know something.
- Waiting ends with a cancel, as everything does: Ctrl-C at a question leaves, and the terminal echoes again.
"""

from __future__ import annotations

import asyncio
import os
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rbee.render.text import neutralise

TERMINAL = "/dev/tty"  # whatever stdin is

_LONGEST_LINE = 4096


def can_ask() -> bool:
    """Whether somebody sits at a terminal: stderr is one, and it can be opened for reading."""
    if not sys.stderr.isatty():
        return False
    try:
        os.close(_open())
    except OSError:
        return False
    return True


class Questions:
    """Puts questions to the terminal. before: called ahead of each, to end what moves on the screen."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._turn = asyncio.Lock()

    async def confirm(self, question: str) -> bool:
        """A yes-or-no question; anything but yes is no."""
        return (await self._line(f"{question} [y/N] ", echo=True)).strip().lower() in ("y", "yes")

    async def passphrase(self, prompt: str) -> str:
        """A line that is not shown while it is typed; "" where the input ends."""
        return await self._line(prompt, echo=False)

    async def _line(self, prompt: str, *, echo: bool) -> str:
        async with self._turn:
            self._before()
            terminal, answer = _open(), ""
            try:
                with _echo(terminal, wanted=echo):
                    os.write(terminal, neutralise(prompt).encode(errors="replace"))
                    answer = await _read_line(terminal)
                    return answer.rstrip("\r\n")
            finally:
                if not echo or not answer.endswith("\n"):
                    os.write(terminal, b"\n")
                os.close(terminal)


def _open() -> int:
    return os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


@contextmanager
def _echo(terminal: int, *, wanted: bool) -> Iterator[None]:
    """Whether what is typed shows on the screen."""
    if wanted:
        yield
        return
    before = termios.tcgetattr(terminal)
    silent = before[:]
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


async def _read_line(terminal: int) -> str:
    """The terminal hands over whole lines, so one read is one answer."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(terminal, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(terminal)
    return os.read(terminal, _LONGEST_LINE).decode(errors="replace")
