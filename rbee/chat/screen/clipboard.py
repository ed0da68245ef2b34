"""Text into the clipboard: by the terminal itself (OSC 52), which works over SSH and mosh, and by a program here."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping

#: Bytes of text that terminals take by OSC 52: xterm's limit, in base64, is 100,000.
MOST_BY_TERMINAL = 74_000
_SECONDS = 5.0


def osc52(text: str) -> str:
    """The escape sequence that has a terminal take `text`, "" for one that is too long. What is in it is base64."""
    data = text.encode(errors="replace")
    return "" if len(data) > MOST_BY_TERMINAL else f"\x1b]52;c;{base64.b64encode(data).decode()}\a"


def program(
    environ: Mapping[str, str] = os.environ, which: Callable[[str], str | None] = shutil.which
) -> tuple[str, ...]:
    """What puts its standard input into the clipboard of the display that is there; () for none."""
    for variable, words in (
        ("WAYLAND_DISPLAY", ("wl-copy",)),
        ("DISPLAY", ("xclip", "-selection", "clipboard")),
        ("DISPLAY", ("xsel", "--clipboard", "--input")),
        ("", ("pbcopy",)),
    ):
        if (not variable or environ.get(variable)) and which(words[0]):
            return words
    return ()


def by_program(text: str) -> str:
    """The program that took it, "" for none that did."""
    words = program()
    if not words:
        return ""
    try:
        subprocess.run(
            words, input=text.encode(errors="replace"), timeout=_SECONDS, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return words[0]
