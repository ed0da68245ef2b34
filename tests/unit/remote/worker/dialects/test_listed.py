"""Nemotron Nano 2, Apriel, MiniMax M1, Firefunction."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.listed import Functools, Listed, ListedLower
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

OPEN = "<think>\n"
ADD = Call("add", '{"a": 1}')
ONE = '{"name": "add", "arguments": {"a": 1}}'

CASES = [
    Case("Hello", [Content("Hello")]),
    Case(f"I'm\nthinking\n</think>\n\n<TOOLCALL>[{ONE}]</TOOLCALL>\n", [Reasoning("I'm\nthinking"), ADD], prompt=OPEN),
    calls(f"<TOOLCALL>[{ONE}, {ONE}]</TOOLCALL>", ADD, ADD),
    calls(f"<TOOLCALL>\n{ONE}\n{ONE}\n</TOOLCALL>", ADD, ADD),
    calls('<TOOLCALL>[{"name": "add", "arguments": {"a"', Call("add", '{"a"')),
    Case('<TOOLCALL>[{"name": "x"}]</TOOLCALL>', [Content('<TOOLCALL>[{"name": "x"}]</TOOLCALL>')]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Listed(Think()), case)


def test_other_tags() -> None:
    check(ListedLower(), calls(f"<tool_calls>[{ONE}]</tool_calls>", ADD))


def test_nothing_stands_behind_the_calls_of_firefunction() -> None:
    check(Functools(), calls(f"functools[{ONE}, {ONE}]", ADD, ADD))
    check(Functools(), Case("import functools\n", [Content("import functools\n")]))
    check_grammar(Functools())


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(Listed(Think()), opens=OPEN)
