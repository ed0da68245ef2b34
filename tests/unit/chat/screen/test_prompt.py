"""What is typed at a terminal, key by key."""

from __future__ import annotations

import asyncio

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from rbee.chat.screen.prompt import Prompt, _shortened
from rbee.chat.words import Known
from tests.patience import PATIENCE_S

ENTER, ALT_ENTER, UP, CTRL_C, CTRL_D, CTRL_R = "\r", "\x1b\r", "\x1b[A", "\x03", "\x04", "\x12"
PASTE = "\x1b[200~{}\x1b[201~"


def typed(keys: str, *, before: tuple[str, ...] = (), count: int = 1) -> list[str | None]:
    """What is read of these keys."""

    async def run() -> list[str | None]:
        with create_pipe_input() as keyboard:
            prompt = Prompt(
                Known(),
                typed=lambda most: list(before)[:most],
                state=lambda: "smollm2:135m on a node whose name is longer than any terminal is wide" * 3,
                on_typing=lambda: None,
                color=False,
                input=keyboard,
                output=DummyOutput(),
            )
            keyboard.send_text(keys)
            async with asyncio.timeout(PATIENCE_S):
                return [await prompt.read() for _ in range(count)]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (f"hi{ENTER}", "hi"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f'"""{ENTER}one{ENTER}two{ENTER}"""{ENTER}', '"""\none\ntwo\n"""'),
        (f"{PASTE.format('one' + chr(13) + 'two' + chr(10) + 'three')}{ENTER}", "one\ntwo\nthree"),
        (f"wrong{CTRL_C}right{ENTER}", "right"),
        (f"{CTRL_C}{CTRL_C}hi{ENTER}", "hi"),
        (CTRL_D, None),
        (f"a{CTRL_D}{ENTER}", "a"),
    ],
)
def test_keys(keys: str, text: str | None) -> None:
    assert typed(keys) == [text]


def test_what_was_typed_before_comes_back() -> None:
    assert typed(f"{UP}{UP}{ENTER}", before=("the last", "the one before")) == ["the one before"]
    assert typed(f"{CTRL_R}bef{CTRL_C}{CTRL_C}x{ENTER}", before=("the one before",)) == ["x"]
    assert typed(f"{CTRL_R}bef{ENTER}{ENTER}", before=("the last", "the one before", "other")) == ["the one before"]


def test_what_was_typed_ahead_is_the_next_message() -> None:
    assert typed(f"one{ENTER}two{ENTER}", count=2) == ["one", "two"]


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("coder on gpu1 · 3%", "coder on gpu1 · 3%"),
        ("file:/models/coder.gguf on gpu1 · 3%", "…gguf on gpu1 · 3%"),
        ("字字字字字字字字字字字 · 3%", "…字字字字字 · 3%"),
    ],
)
def test_of_a_long_state_the_end_is_shown(state: str, shown: str) -> None:
    assert _shortened(state, 18) == shown
