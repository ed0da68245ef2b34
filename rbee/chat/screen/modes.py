"""How the terminal treats keys while no prompt is shown.

Rules
- What is typed while an answer comes is kept for the next prompt, and does not show in the answer.
- Ctrl-C is a signal throughout; the modes that were found are put back at the end.
"""

from __future__ import annotations

import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keys are neither shown nor gathered to lines."""
    with _changed(lambda flags: flags & ~(termios.ECHO | termios.ICANON)):
        yield


@contextmanager
def cooked() -> Iterator[None]:
    """As programs expect a terminal: for an editor, or a question."""
    with _changed(lambda flags: flags | termios.ECHO | termios.ICANON | termios.ISIG):
        yield


@contextmanager
def _changed(change: Callable[[int], int]) -> Iterator[None]:
    terminal = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(terminal)
    except termios.error:  # no terminal
        yield
        return
    after = before[:]
    after[3] = change(before[3])
    termios.tcsetattr(terminal, termios.TCSANOW, after)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
