"""llama.cpp's log, line by line, to ours. It is also the only place where llama.cpp says why something failed."""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Iterator

from llama_cpp import llama_cpp as llama

_log = logging.getLogger("rbee.llama")

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}  # enum ggml_log_level in ggml.h
_CONTINUED = 5
_line: tuple[int, str] = (logging.DEBUG, "")
#: Whether a step is being cut short, see `LlamaEngine.interrupt`.
interrupted = False
_errors: collections.deque[str] = collections.deque(maxlen=4)
_wanted: list[tuple[str, list[str]]] = []


def _on_log(level: int, text: bytes | None, _: object) -> None:
    """Whole lines of llama.cpp's log to ours."""
    global _line  # noqa: PLW0603 - llama.cpp has one log per process, and sends lines in pieces
    python_level = _line[0] if level == _CONTINUED else _LEVELS.get(level, logging.DEBUG)
    whole = (_line[1] if level == _CONTINUED else "") + (text or b"").decode(errors="replace")
    _line = (python_level, whole)
    if not whole.endswith("\n"):
        return
    _line = (python_level, "")
    if python_level >= logging.ERROR:
        _errors.append(whole.strip())
    if interrupted and python_level > logging.DEBUG:
        python_level = logging.DEBUG  # a step that was cut short on purpose is an error to llama.cpp
    if whole.strip(" .\n"):
        _log.log(python_level, "%s", whole.rstrip())
    for part, lines in _wanted:
        if part in whole:
            lines.append(whole.strip())


#: Lives as long as the module, because llama.cpp keeps the pointer.
_log_callback = llama.llama_log_callback(_on_log)


@contextlib.contextmanager
def collected_errors() -> Iterator[collections.deque[str]]:
    """The last error lines that llama.cpp logs meanwhile."""
    _errors.clear()
    yield _errors


@contextlib.contextmanager
def collected_lines(part: str) -> Iterator[list[str]]:
    """The lines that llama.cpp logs meanwhile and that have `part` in them, as they come."""
    entry: tuple[str, list[str]] = (part, [])
    _wanted.append(entry)
    try:
        yield entry[1]
    finally:
        _wanted.remove(entry)


def install() -> None:
    """From now on for the whole process."""
    llama.llama_log_set(_log_callback, None)
