"""What is typed: messages, /words, and their completion."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import UsageError
from rbee.chat import commands, words
from rbee.chat.words import Call, Known, completions, read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hi", "hi"),
        ("  hi\n", "  hi"),
        ("", ""),
        ("   ", ""),
        ("/etc/hosts: what is it?", "/etc/hosts: what is it?"),
        ("//help", "/help"),
        ("/help", Call("help")),
        ("/?", Call("help")),
        ("/", Call("help")),
        ("/bye", Call("exit")),
        ("/clear", Call("new")),
        ("/MODEL  smollm2:135m ", Call("model", "smollm2:135m")),
        ("/set temperature 0.2", Call("set", "temperature 0.2")),
        ('/system """\nBe brief.\nBe kind.\n"""', Call("system", "Be brief.\nBe kind.")),
        ('"""\ntwo\nlines\n"""', "two\nlines"),
        ('"""one"""', "one"),
        ('"""Adds.""" what is that?', '"""Adds.""" what is that?'),
    ],
)
def test_what_it_means(text: str, said: Call | str) -> None:
    assert read(text) == said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/modell x", "there is no /modell"),
        ("/file", "/file needs PATH"),
        ("/undo that", "/undo stands alone"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(text)
    assert caught.value.hint


@given(st.text())
def test_anything_is_a_message_a_word_or_refused(text: str) -> None:
    try:
        said = read(text)
    except UsageError:
        return
    assert isinstance(said, str | Call)


def test_each_word_does_something() -> None:
    assert set(commands._WORDS) == {word.name for word in words.WORDS}


KNOWN = Known(
    models=lambda: ["smollm2:135m", "coder", "smollm2:135m"],
    nodes=lambda: ["gpu1", "local", "@cuda"],
    sessions=lambda: {"3f2a9c1e": "why is the sky blue", "77aa0000": "tea"},
    paths=lambda begun: [f"{begun}a.py", f"{begun}b/"],
)


@pytest.mark.parametrize(
    ("before", "texts"),
    [
        ("/mo", ["/model "]),
        ("/s", ["/system ", "/set ", "/save ", "/sessions "]),
        ("/model s", ["smollm2:135m"]),
        ("/node ", ["gpu1", "local", "@cuda", "any"]),
        ("/set t", ["temperature ", "top_p ", "top_k "]),
        ("/set temperature d", ["default"]),
        ("/think m", ["medium"]),
        ("/file src/", ["src/a.py", "src/b/"]),
        ("/load WHY", ["3f2a9c1e"]),
        ("/load 77", ["77aa0000"]),
        ("/copy ", ["all"]),
        ("hello /mo", []),
        ("/system be\n/mo", []),
        ("/nothing x", []),
    ],
)
def test_how_it_may_go_on(before: str, texts: list[str]) -> None:
    assert [found.text for found in completions(before, KNOWN)] == texts


def test_a_completion_takes_the_place_of_what_was_begun() -> None:
    (found,) = completions("/set temperature d", KNOWN)
    assert "/set temperature d"[: -found.replaces] + found.text == "/set temperature default"
