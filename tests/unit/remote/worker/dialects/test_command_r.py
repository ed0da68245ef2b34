"""Command R7B and Cohere's later models."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.command_r import CommandR
from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

THINK = Think("<|START_THINKING|>", "<|END_THINKING|>")
THOUGHT = "<|START_THINKING|>I'm\nthinking<|END_THINKING|>"
ADD = Call("add", '{"a": 1}', "0")
ACTION = '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}}\n]<|END_ACTION|>'

CASES = [
    Case("Hello", [Content("Hello")]),
    Case("<|START_RESPONSE|>Hello,\nworld!<|END_RESPONSE|>", [Content("Hello,\nworld!")]),
    Case("<|START_RESPONSE|>Hello<|END_RESPONSE|>", [Content("Hello")], tools=None),
    Case(f"{THOUGHT}<|START_RESPONSE|>Hello<|END_RESPONSE|>", [Reasoning("I'm\nthinking"), Content("Hello")]),
    Case(f"{THOUGHT}<|START_TEXT|>Hello<|END_TEXT|>", [Reasoning("I'm\nthinking"), Content("Hello")]),
    calls(ACTION, ADD),
    Case(f"{THOUGHT}{ACTION}", [Reasoning("I'm\nthinking"), ADD]),
    calls(f"<|START_THINKING|><|END_THINKING|>{ACTION}", ADD),
    calls(
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 1}},\n'
        '{"tool_call_id": "1", "tool_name": "now", "parameters": {}}]<|END_ACTION|>',
        ADD,
        Call("now", "{}", "1"),
    ),
    calls('<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "add", ', Call("add", "", "0")),
    calls('<|START_ACTION|>[{"tool_name": "add", "parameters": {"a": ', Call("add", '{"a": ')),
    Case('<|START_ACTION|>[{"tool_name": "made_up"}]', [Content('<|START_ACTION|>[{"tool_name": "made_up"}]')]),
    Case("<|START_ACTION|>[]", [Content("<|START_ACTION|>[]")], tools=None),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:80] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(CommandR(THINK), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(CommandR(THINK), opens="<|START_THINKING|>")
