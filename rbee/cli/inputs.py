"""What a command reads besides its words: standard input and files, of this process or of the client it runs for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rbee.base.errors import UsageError


def _own_standard_input(*, is_named: bool) -> bytes | None:
    is_silent = sys.stdin is None or sys.stdin.closed
    if is_silent or (sys.stdin.isatty() and not is_named):
        return None
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise UsageError(f"standard input cannot be read: {error.strerror or error}") from error


class ReadStandardInput(Protocol):
    def __call__(self, *, is_named: bool) -> bytes | None:
        """All of it, None where it has nothing for us: closed, or a terminal, unless it is named ("-")."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """file: as `Path.read_bytes`."""

    standard_input: ReadStandardInput = _own_standard_input
    file: Callable[[Path], bytes] = Path.read_bytes


INPUTS: ContextVar[Inputs] = ContextVar("inputs", default=Inputs())  # noqa: B039 - it is frozen
