"""DeepSeek R1, V3 and V3.1."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.deepseek import DeepSeek, DeepSeekBrief
from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

CALLS, CALLS_END, BEGIN, END, SEP = DeepSeek.call_markers
OPEN = "<\uff5cAssistant\uff5c><think>\n"
ADD = Call("add", '{"a": 1}')
WRITTEN = f'{BEGIN}function{SEP}add\n```json\n{{"a": 1}}\n```{END}'
BRIEF = f'{BEGIN}add{SEP}{{"a": 1}}{END}'
UNKNOWN = f"{CALLS}{BEGIN}made_up{SEP}{{}}{END}{CALLS_END}"

CASES = [
    Case("Hello", [Content("Hello")]),
    Case("I'm\nthinking</think>Hello", [Reasoning("I'm\nthinking"), Content("Hello")], prompt=OPEN),
    calls(f"{CALLS}{WRITTEN}{CALLS_END}", ADD),
    calls(f"{CALLS}{WRITTEN}\n{WRITTEN}{CALLS_END}", ADD, ADD),
    calls(f'{CALLS}{BEGIN}function{SEP}add\n```json\n{{"a": 1}}```{END}{CALLS_END}', ADD),
    calls(f"{CALLS}{BRIEF}{CALLS_END}", ADD),
    calls(f"{CALLS}{BRIEF}{BEGIN}now{SEP}{{}}{END}{CALLS_END}", ADD, Call("now")),
    Case(
        f"REASONING</think>CONTENT{CALLS}{BRIEF}{BRIEF}{CALLS_END}",
        [Reasoning("REASONING"), Content("CONTENT"), ADD, ADD],
        prompt=OPEN,
    ),
    calls(f'{CALLS}{BEGIN}run{SEP}{{"code": "```}}"}}{END}', Call("run", '{"code": "```}"}')),
    calls(f'{CALLS}{BEGIN}function{SEP}add\n```json\n{{"a"', Call("add", '{"a"')),
    calls(f"{CALLS}{BEGIN}add{SEP}", Call("add", "")),
    Case(UNKNOWN, [Content(UNKNOWN)]),
    Case(f"{CALLS} none", [Content(f"{CALLS} none")]),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_answers_are_split(case: Case) -> None:
    check(DeepSeek(Think()), case)


@pytest.mark.parametrize("family", [DeepSeek, DeepSeekBrief])
def test_what_the_grammar_allows_is_read(family: type[DeepSeek]) -> None:
    check_grammar(family(Think()), opens=OPEN)
