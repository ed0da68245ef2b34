"""A terminal's whole screen, drawn line by line, and given back as it was.

Rules
- Between `enter` and `leave` the terminal is ours: the other screen, no echo, no cursor, lines that do not wrap. Both
  may be called twice. What leaves by an error, a signal or a suspension leaves by `leave`.
- Only lines that are others than before are written.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from typing import Any

from rbee.base.errors import RbeeError
from rbee.render import Output, OutputClosed
from rbee.render.cells import width
from rbee.render.text import neutralise

#: A text and its style, one of STYLES' names. What a node said has been made one line before.
Span = tuple[str, str]
Line = tuple[Span, ...]

#: SGR codes: with colours, and without.
STYLES = {
    "": ("", ""),
    "bold": ("1", "1"),
    "dim": ("2", "2"),
    "good": ("32", ""),
    "warn": ("33", "1"),
    "bad": ("31", "1"),
    "ask": ("1;33", "1"),
    "head": ("30;42", "1;4"),
    "cursor": ("30;46", "7"),
}

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
#: Of a terminal that does not say.
_SIZE = (80, 24)


class FullScreen:
    """out: the terminal. color: False where none is wanted. Used as `with FullScreen(…) as screen`."""

    def __init__(self, out: Output, *, color: bool) -> None:
        self._out = out
        self._color = color
        self._before: list[Any] | None = None
        self._shown: list[str] = []
        self._size = _SIZE

    def __enter__(self) -> FullScreen:
        self.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self) -> None:
        """Raises OutputClosed."""
        with contextlib.suppress(termios.error, OSError):
            if self._before is None:
                self._before = termios.tcgetattr(sys.stdin.fileno())
            tty.setcbreak(sys.stdin.fileno(), termios.TCSADRAIN)
        self.forget()
        self._out.write_raw(_ENTER)

    def leave(self) -> None:
        """Raises nothing: a terminal that is gone needs nothing any more."""
        with contextlib.suppress(OutputClosed, RbeeError, ValueError):
            self._out.write_raw(_LEAVE)
        if self._before is not None:
            with contextlib.suppress(termios.error, OSError, ValueError):
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, self._before)
            self._before = None

    def suspend(self) -> None:
        """Give the terminal back, and stop as Ctrl-Z has it; returns when somebody lets us go on. The signal's own
        effect has to be in place."""
        self.leave()
        signal.raise_signal(signal.SIGTSTP)
        self.enter()

    @property
    def size(self) -> tuple[int, int]:
        """(cells, lines), now."""
        try:
            found = os.get_terminal_size(self._out.stream.fileno())
        except (OSError, ValueError):
            return _SIZE
        return (found.columns or _SIZE[0], found.lines or _SIZE[1])

    def forget(self) -> None:
        """Somebody else has drawn there: the next picture is drawn whole."""
        self._shown = []

    def draw(self, lines: Sequence[Line], size: tuple[int, int]) -> None:
        """lines: for this size. Raises OutputClosed."""
        if size != self._size:
            self._size = size
            self.forget()
        drawn = [self._codes(line, size[0]) for line in lines]
        whole = not self._shown
        written = ["\x1b[2J"] if whole else []
        for number, line in enumerate(drawn):
            if whole or number >= len(self._shown) or self._shown[number] != line:
                written.append(f"\x1b[{number + 1};1H{line}")
        self._shown = drawn
        if written:
            self._out.write_raw("".join(written))

    def _codes(self, line: Line, cells: int) -> str:
        """What is left of the line is erased. Behind a full one the cursor stands on its last cell, which stays."""
        is_full = sum(width(text) for text, _ in line) >= cells
        return "".join(self._styled(text, style) for text, style in line) + ("" if is_full else "\x1b[K")

    def _styled(self, text: str, style: str) -> str:
        codes = STYLES[style][0 if self._color else 1]
        text = neutralise(text)
        return f"\x1b[{codes}m{text}\x1b[0m" if codes else text
