"""What holds for every dialect, however its answers are cut, and whatever a model writes."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee_remote.worker.dialects.find import DIALECTS
from rbee_remote.worker.dialects.interface import Content, Dialect, Piece, Reasoning, Tools
from rbee_remote.worker.dialects.json_text import JsonScanner, NotJson
from tests.dialect_cases import TOOLS, Call, joined, read, tokens, vocabulary

FRAGMENTS = (
    *(' ', '\n', 'add', 'now', 'functions.now:0', 'x', '{"name": "add", ', '"arguments": ', '{"a": 1}', '}', '[', ']'),
    *(', ', '"', '\\', '日', '<', '<tool', '{"code": "', '<function=run>', '<parameter=code>', '</parameter>', '(a=1)'),
)  # fmt: skip
#: Dialects whose answers stand in frames, which are no text.
FRAMED = {"harmony", "command_r", "granite"}
by_name = pytest.mark.parametrize(
    "dialect", {type(each): each for each in reversed(DIALECTS)}.values(), ids=lambda each: type(each).__name__
)


def written(dialect: Dialect) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from((*dialect.markers, *FRAGMENTS)), max_size=14).map("".join)


@by_name
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_it_does_not_matter_how_an_answer_is_cut(dialect: Dialect, data: st.DataObject) -> None:
    text = data.draw(written(dialect))
    known = data.draw(st.sampled_from([{}, vocabulary(dialect)]))
    reader = dialect.reader(TOOLS, known, "")
    out: list[Piece] = []
    for part, marker in tokens(text, known):
        cuts = [] if marker else data.draw(st.lists(st.integers(0, len(part))))
        edges = sorted({0, len(part), *cuts})
        for start, end in itertools.pairwise(edges):
            out += reader.feed(part[start:end], marker=marker)
    assert joined([*out, *reader.finish()]) == read(dialect, text, known=known)


@by_name
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_text_is_lost(dialect: Dialect, data: st.DataObject) -> None:
    text = data.draw(written(dialect))
    for known in ({}, vocabulary(dialect)):
        found = read(dialect, text, tools=Tools({"other": {}}), known=known)
        assert all(isinstance(piece, Content | Reasoning) for piece in found)
        out = "".join(getattr(piece, "text", "") for piece in found)
        if dialect.name in FRAMED:
            continue
        assert letters(dialect, out) == letters(dialect, text)


def letters(dialect: Dialect, text: str) -> str:
    """Without space, and without the markers of reasoning, which are no text."""
    think = getattr(dialect, "think", None)
    for marker in think.markers if think else ():
        text = text.replace(marker, "")
    return "".join(text.split())


@by_name
def test_without_tools_no_call_is_looked_for(dialect: Dialect) -> None:
    text = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    assert read(dialect, text, tools=None) == [Content(text)]


@by_name
def test_after_its_end_a_reader_says_nothing(dialect: Dialect) -> None:
    reader = dialect.reader(TOOLS, {}, "")
    assert reader.finish() == []
    assert reader.finish() == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(values, st.sampled_from([None, 2]), st.booleans())
def test_json_is_found_to_its_end(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    scanner = JsonScanner()
    taken = ""
    for char in f"{text} rest":
        if scanner.done:
            break
        taken += scanner.take(char, 0)[1]
    assert scanner.done
    assert json.loads(taken) == value


@pytest.mark.parametrize(
    "text",
    ["nul ", "-x", "[1,]", '{"a"}', '{"a" 1}', "{a: 1}", '"\\x"', '"\\u12g"', "[01]", "NaN", "[}", "1.e1 ", "'a'"],
)
def test_what_is_no_json_is_noticed(text: str) -> None:
    scanner = JsonScanner()
    with pytest.raises(NotJson):  # noqa: PT012 - any of its characters
        for char in text:
            scanner.take(char, 0)


def test_line_ends_in_strings_are_escaped() -> None:
    assert JsonScanner().take('"a\n\tb"', 0) == (6, '"a\\n\\tb"')


def test_a_long_answer_takes_time_in_proportion() -> None:
    code = "x" * 400_000
    for dialect in DIALECTS:
        if dialect.name != "hermes":
            continue
        text = f'<tool_call>{{"name": "run", "arguments": {{"code": "{code}"}}}}</tool_call>'
        reader = dialect.reader(TOOLS, {}, "")
        out = [piece for at in range(0, len(text), 4) for piece in reader.feed(text[at : at + 4])]
        assert joined([*out, *reader.finish()]) == [Call("run", f'{{"code": "{code}"}}')]
