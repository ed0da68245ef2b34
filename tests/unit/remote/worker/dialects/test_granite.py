"""Granite 3."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.granite import Granite
from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

ADD = Call("add", '{"a": 1}')
LIST = '[{"name": "add", "arguments": {"a": 1}}]'

CASES = [
    Case("Hello", [Content("Hello")]),
    Case("<think>I'm\nthinking</think>Hello", [Reasoning("I'm\nthinking"), Content("Hello")]),
    Case("<think>I'm</think><response>Hello</response>", [Reasoning("I'm"), Content("Hello")]),
    Case("<think>I'm</think>\n<response> Hello</response>\n", [Reasoning("I'm"), Content("Hello")], tools=None),
    Case("a <response> b</response>", [Content("a <response> b</response>")]),
    calls(f"<|tool_call|>{LIST}", ADD),
    calls(f"<|tool_call|> {LIST}\n", ADD),
    calls('<|tool_call|>[{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]', ADD, Call("now")),
    calls(LIST, ADD),
    Case(f"<think>I'm</think><|tool_call|>{LIST}", [Reasoning("I'm"), ADD]),
    calls('<|tool_call|>[{"name": "add", "arguments": {"a"', Call("add", '{"a"')),
    Case('<|tool_call|>[{"name": "made_up"}]', [Content('<|tool_call|>[{"name": "made_up"}]')]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Granite(Think()), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(Granite(Think()), opens="<think>")
