"""The only printer: what a renderer is, and which one this command line calls for.

Rules
- stdout carries what was asked for (the answer, a table, JSON); everything else goes to stderr.
- What comes from a node or a model never reaches a terminal with its control characters; into a pipe it goes as it is.
- A reader that hangs up (`| head -1`) is no error: OutputClosed leaves the command, which then ends quietly.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rbee.base.errors import RbeeError
from rbee.base.events import Event
from rbee.render.text import neutralise
from rbee_remote.protocol import ErrorCode


class OutputClosed(Exception):
    """Nobody reads stdout any more. No OSError, so that nothing on the way takes it for a lost connection."""


@dataclass(frozen=True, slots=True)
class Table:
    """A list for the user. rows: one text per column; data: the same as JSON values, one object per row."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    data: Sequence[Mapping[str, Any]]


class Output:
    """A text stream that is written through at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.is_terminal = stream.isatty()
        self.ends_line = True
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:  # an answer must not fail on a character that the locale lacks; a pipe always gets UTF-8
            reconfigure(errors="replace") if self.is_terminal else reconfigure(encoding="utf-8", errors="replace")

    @property
    def stream(self) -> TextIO:
        return self._stream

    @property
    def columns(self) -> int | None:
        """The width of a terminal that is not this process's, None for what the system says."""
        return getattr(self._stream, "columns", None)

    @property
    def cells(self) -> int:
        """The width of the terminal, 80 for none that says."""
        try:
            return self.columns or os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables of whoever reads it."""
        return getattr(self._stream, "environ", os.environ)

    def write(self, text: str) -> None:
        """Write and flush; control characters are neutralised for a terminal. Raises OutputClosed."""
        if text:
            self.write_raw(neutralise(text) if self.is_terminal else text)

    def write_raw(self, text: str) -> None:
        """Write and flush text of our own, escape sequences and all. Raises OutputClosed, RbeeError DISK_FULL."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError as error:
            self._discard()
            raise OutputClosed from error
        except OSError as error:
            self._discard()
            message = f"cannot write the output: {error.strerror}"
            raise RbeeError(
                ErrorCode.DISK_FULL, message, hint="check the file or program that the output goes to"
            ) from error
        self.ends_line = text.endswith("\n")

    def _discard(self) -> None:
        """What the stream still holds goes nowhere, so that nothing complains about it at exit."""
        try:
            target = self._stream.fileno()
        except OSError:  # no file: it holds nothing back
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, target)
        os.close(nowhere)

    def end_line(self) -> None:
        """On a terminal: whatever follows begins a line."""
        if self.is_terminal and not self.ends_line:
            self.write_raw("\n")


class Renderer(ABC):
    """What commands print through. Used as `with make_renderer(…) as renderer`; leaving ends live displays."""

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Show an event of a use case. Raises OutputClosed."""

    @abstractmethod
    def error(self, error: RbeeError) -> None:
        """Show the error that ends the command."""

    @abstractmethod
    def table(self, table: Table) -> None:
        """Print a list on stdout. Raises OutputClosed."""

    @abstractmethod
    def record(self, data: Mapping[str, Any]) -> None:
        """Print one thing on stdout, a line for each of its keys. Raises OutputClosed."""

    @abstractmethod
    def done(self, text: str, data: Mapping[str, Any]) -> None:
        """Say that something was done: a line on stderr; with --json `data` on stdout. Raises OutputClosed."""

    @abstractmethod
    def write(self, text: str) -> None:
        """Text that was asked for, such as a log, to stdout as it comes. Raises OutputClosed."""

    @abstractmethod
    def close(self) -> None:
        """End what moves on the screen. Idempotent."""


def make_renderer(
    *,
    json: bool = False,
    quiet: bool = False,
    verbose: int = 0,
    color: bool = True,
    stream: bool = True,
    timing: bool = False,
    reasoning: bool | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> Renderer:
    """The renderer for these options and streams.

    color: False for --no-color; $NO_COLOR counts too. stream: False shows the answer when it is whole.
    timing: a table of the timings follows the answer. reasoning: whether it is shown, None for where stderr is a
    terminal; with --json it always is.
    """
    out, err = Output(stdout or sys.stdout), Output(stderr or sys.stderr)
    if json:
        from rbee.render.json_lines import JsonRenderer

        return JsonRenderer(out, stream=stream)
    reasoning = err.is_terminal if reasoning is None else reasoning
    moves = err.is_terminal and err.environ.get("TERM", "dumb") != "dumb"
    if moves and not quiet:
        from rbee.render.terminal import TerminalRenderer

        color = color and not err.environ.get("NO_COLOR")
        return TerminalRenderer(
            out, err, verbose=verbose, color=color, stream=stream, timing=timing, reasoning=reasoning
        )
    from rbee.render.plain import PlainRenderer

    return PlainRenderer(
        out, err, quiet=quiet, verbose=verbose, stream=stream, timing=timing, reasoning=reasoning and not quiet
    )
