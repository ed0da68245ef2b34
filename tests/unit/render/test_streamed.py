"""An answer while it comes: at its end the screen shows what it would show of the whole text at once."""

from __future__ import annotations

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.render import Output
from rbee.render.live_region import LiveRegion
from rbee.render.markdown import Line, finished_length, markdown_lines
from rbee.render.streamed import StreamedAnswer
from tests.doubles.terminal import Terminal

ANSWER = """# Sky

The sky is **blue**, because of
Rayleigh scattering; `x < y` and <b>this</b> stay.

1. first
2. second, which is a rather long line that has to be wrapped at forty columns

```python
def f(x):
    return x * 2  # a comment that is longer than forty columns
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

See [the page](https://example.org/x).
"""


def plain(lines: list[Line]) -> str:
    return "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", line.text).rstrip() for line in lines)


class Clock:
    """Every look at it is a second later: each event is drawn."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def shown(pieces: list[str], terminal: Terminal, *, folded: bool = False, reasoning: list[str] | None = None) -> str:
    async def run() -> None:
        answer = StreamedAnswer(Output(terminal), terminal.size, color=True, folded=folded, clock=Clock())
        answer.status("loading")
        for number, piece in enumerate(reasoning or [], 1):
            answer.reasoning(piece, number)
        for piece in pieces:
            answer.text(piece)
        answer.end()

    asyncio.run(run())
    return terminal.text


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_however_it_is_cut_the_whole_answer_stands_there_at_the_end(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ANSWER)), max_size=12)))
    pieces = [ANSWER[a:b] for a, b in zip([0, *cuts], [*cuts, len(ANSWER)], strict=True)]
    columns = data.draw(st.sampled_from([40, 80]))
    whole = plain(markdown_lines(ANSWER, columns - 1, color=True))
    assert shown(pieces, Terminal(columns, 60)) == whole


def test_each_character_by_itself_in_a_window_of_six_rows() -> None:
    """What scrolls away stays as it was drawn; nothing is there twice."""
    text = "".join(f"{number}. {chr(32).join([str(number)] * 50)}\n" for number in range(1, 6)) + "\n" + "word " * 60
    assert shown(list(text), Terminal(40, 6)) == plain(markdown_lines(text, 39, color=True))


def test_a_finished_block_is_not_written_again() -> None:
    terminal = Terminal(80, 60)
    first = "word " * 400
    shown([first + "\n\n", *"and a short one"], terminal)
    assert terminal.written < 3 * len(first)


def test_reasoning_comes_first_and_a_line_is_between() -> None:
    said = shown(["The ", "answer."], Terminal(), reasoning=["hm, ", "let me\n", "see"])
    assert said == "hm, let me\nsee\n\nThe answer."


def test_folded_reasoning_is_one_line() -> None:
    said = shown(["Answer."], Terminal(60), folded=True, reasoning=["hm\n"] * 5)
    assert re.fullmatch(r"thought for \d+ s, 5 tokens; /think show shows it\n\nAnswer\.", said)


def test_what_was_waited_for_is_gone_at_the_end() -> None:
    assert shown([], Terminal()) == ""
    assert shown(["x"], Terminal()) == "x"


async def test_nothing_moves_while_a_question_is_put() -> None:
    terminal = Terminal()
    answer = StreamedAnswer(Output(terminal), terminal.size, color=False)
    answer.status("connecting")
    assert "connecting" in terminal.text
    answer.status("")
    assert (terminal.text, answer._timer) == ("", None)
    answer.end()


def test_a_line_in_between_stands_where_it_came() -> None:
    terminal = Terminal()

    async def run() -> None:
        answer = StreamedAnswer(Output(terminal), terminal.size, color=False, clock=Clock())
        answer.text("half an")
        answer.line("reconnected to gpu1")
        answer.text(" answer")
        answer.end()

    asyncio.run(run())
    assert terminal.text == "half an\nreconnected to gpu1\n\nanswer"


def test_a_model_cannot_write_to_the_terminal() -> None:
    lines = shown(["\x1b]52;c;AAAA\x07\x1b[2J", "`\x1b[31m`"], Terminal(80))
    assert "\\x1b]52;c;AAAA\\x07\\x1b[2J" in lines


def test_without_colour_bold_is_left() -> None:
    (line,) = markdown_lines("**a** `b`", 40, color=False)
    assert "\x1b[1m" in line.text
    assert not re.search(r"\x1b\[[0-9;]*[349][0-7]", line.text)


@pytest.mark.parametrize("width", [10, 20, 39, 79])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    assert all(line.width <= width for line in markdown_lines(ANSWER + "字" * 50, width, color=True))


def test_blocks_are_finished_when_another_one_has_begun() -> None:
    assert finished_length("one\n\ntwo") == 0
    assert finished_length("one\n\ntwo\n") == len("one\n\n")
    assert finished_length("1. a\n\n2") == 0
    assert finished_length("1. a\n\n2. b\n") == 0
    assert finished_length("```\none\n\ntwo\n") == 0
    assert finished_length("") == 0
    assert finished_length("a\u2028b\u2028c\n\n```\none\n```\n\nend\n") == len("a\u2028b\u2028c\n\n```\none\n```\n\n")


@given(st.text(st.sampled_from("ab#-*`>|1. \n"), max_size=80))
@settings(deadline=None, max_examples=200)
def test_any_text_can_be_cut_and_drawn(text: str) -> None:
    assert 0 <= finished_length(text) <= len(text)
    markdown_lines(text, 20, color=True)


# --- the region -----------------------------------------------------------------------------------------------------


def drawn(*texts: str) -> list[Line]:
    return [Line(text, len(text)) for text in texts]


def test_lines_change_in_place() -> None:
    terminal = Terminal()
    region = LiveRegion(Output(terminal), terminal.size)
    region.draw([], drawn("one", "two"))
    region.draw([], drawn("one", "two and more", "three"))
    assert terminal.text == "one\ntwo and more\nthree"
    region.draw([], drawn("one"))
    region.draw([], drawn("one more"))
    assert terminal.text == "one more"
    region.draw(drawn("done"), drawn("live"))
    assert terminal.text == "done\nlive"
    region.clear()
    assert (terminal.text, terminal.column) == ("done", 0)


def test_what_was_live_may_be_finished_as_it_is() -> None:
    terminal = Terminal()
    region = LiveRegion(Output(terminal), terminal.size)
    region.draw([], drawn("one", "two"))
    region.draw(drawn("one", "two"), [])
    region.draw([], drawn("three"))
    assert terminal.text == "one\ntwo\nthree"


def test_nothing_is_written_where_nothing_changed() -> None:
    terminal = Terminal()
    region = LiveRegion(Output(terminal), terminal.size)
    region.draw([], drawn("one", "two"))
    before = terminal.written
    region.draw([], drawn("one", "two"))
    assert terminal.written == before


@pytest.mark.parametrize("columns", [20, 30, 60])
def test_a_terminal_that_changes_its_width_shows_it_once(columns: int) -> None:
    terminal = Terminal(40, 12)
    region = LiveRegion(Output(terminal), terminal.size)
    region.draw(drawn("above"), drawn("x" * 35, "y" * 5))
    terminal.resize(columns, 12)
    region.draw([], drawn(*["x" * (columns - 1), "z"]))
    assert terminal.text == f"above\n{'x' * (columns - 1)}\nz"
