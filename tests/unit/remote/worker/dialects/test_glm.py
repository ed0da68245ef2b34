"""GLM 4.5 to 4.7."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.glm import Glm
from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar


def pair(key: str, value: str) -> str:
    return f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"


CITY, DAYS = "Kö\nln", '[1, "Mo"]'
ADD = f"<tool_call>add\n{pair('a', '1')}</tool_call>"

CASES = [
    Case("\n<think>I'm</think>\nHello", [Reasoning("I'm"), Content("Hello")]),
    Case("\nHello", [Content("Hello")], prompt="<|assistant|>\n<think></think>"),
    calls(ADD, Call("add", '{"a": 1}')),
    calls(f"\n{ADD}\n{ADD}", Call("add", '{"a": 1}'), Call("add", '{"a": 1}')),
    Case(f"<think>I'm</think>\nWell.\n{ADD}", [Reasoning("I'm"), Content("Well."), Call("add", '{"a": 1}')]),
    calls(f"<tool_call>add{pair('a', '1')}</tool_call>", Call("add", '{"a": 1}')),
    calls(f"<tool_call>run\n{pair('code', ' 7 ')}</tool_call>", Call("run", '{"code": " 7 "}')),
    calls(
        f"<tool_call>weather\n{pair('city', CITY)}{pair('days', DAYS)}</tool_call>",
        Call("weather", '{"city": "Kö\\nln", "days": [1, "Mo"]}'),
    ),
    calls("<tool_call>now\n</tool_call>", Call("now")),
    calls("<tool_call>now</tool_call>", Call("now")),
    calls("<tool_call>run\n<arg_key>code</arg_key>\n<arg_value>ab", Call("run", '{"code": "ab')),
    calls("<tool_call>run\n<arg_key>co", Call("run", "")),
    calls("<tool_call>run", Call("run", "")),
    Case("<tool_call>made_up\n</tool_call>", [Content("<tool_call>made_up\n</tool_call>")]),
    Case("<tool_call>adding\n</tool_call>", [Content("<tool_call>adding\n</tool_call>")]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Glm(Think()), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(Glm(Think()), opens="<|assistant|>\n<think>")
