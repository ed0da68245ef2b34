"""LFM 2 and 2.5."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.lfm2 import Lfm2
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

BEGIN, END = Lfm2.call_markers
ADD = Call("add", '{"a": 1}')

CASES = [
    Case("Hello", [Content("Hello")]),
    calls(f"{BEGIN}[add(a=1)]{END}", ADD),
    Case(
        f"<think>I'm</think>{BEGIN}[add(a=1), now()]{END}Done.", [Reasoning("I'm"), ADD, Call("now"), Content("Done.")]
    ),
    calls(f'{BEGIN}[{{"name": "add", "arguments": {{"a": 1}}}}]{END}', ADD),
    calls(f'{BEGIN}[weather(city="a, b)", days=[1', Call("weather", '{"city": "a, b)"')),
    Case(f"{BEGIN}[made_up(a=1)]{END}", [Content(f"{BEGIN}[made_up(a=1)]{END}")]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Lfm2(Think()), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(Lfm2(Think()), opens="<think>")
