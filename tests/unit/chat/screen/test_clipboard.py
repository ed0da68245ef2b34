"""What takes a text into the clipboard."""

from __future__ import annotations

import pytest

from rbee.chat.screen.clipboard import MOST_BY_TERMINAL, osc52, program


def test_the_terminal_gets_base64() -> None:
    assert osc52("ü\x1b") == "\x1b]52;c;w7wb\a"
    assert osc52("x" * (MOST_BY_TERMINAL + 1)) == ""


@pytest.mark.parametrize(
    ("environ", "there", "found"),
    [
        ({"WAYLAND_DISPLAY": "w", "DISPLAY": ":0"}, {"wl-copy", "xclip"}, ("wl-copy",)),
        ({"DISPLAY": ":0"}, {"wl-copy", "xclip"}, ("xclip", "-selection", "clipboard")),
        ({"DISPLAY": ":0"}, {"xsel"}, ("xsel", "--clipboard", "--input")),
        ({}, {"xclip", "wl-copy"}, ()),
        ({}, {"pbcopy"}, ("pbcopy",)),
    ],
)
def test_the_program_of_the_display_that_is_there(
    environ: dict[str, str], there: set[str], found: tuple[str, ...]
) -> None:
    assert program(environ, lambda name: name if name in there else None) == found
