"""Kimi K2."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.kimi import Kimi
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar


def call(call_id: str, arguments: str) -> str:
    return f"<|tool_call_begin|>{call_id}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"


def section(*written: str) -> str:
    return f"<|tool_calls_section_begin|>{''.join(written)}<|tool_calls_section_end|>"


ADD = Call("add", '{"a": 1}', "functions.add:0")
WRITTEN = section(call("functions.add:0", '{"a": 1}'))

CASES = [
    Case("Hello", [Content("Hello")]),
    calls(WRITTEN, ADD),
    Case(f"<think>I'm</think>{WRITTEN}", [Reasoning("I'm"), ADD]),
    Case(f"Hello{WRITTEN}", [Content("Hello"), ADD]),
    calls(
        section(call("functions.add:0", '{"a": 1}'), call(" functions.now:1 ", "{}")),
        ADD,
        Call("now", "{}", "functions.now:1"),
    ),
    calls(section(call("functions.run:0", '{"code": "\\"}{"}')), Call("run", '{"code": "\\"}{"}', "functions.run:0")),
    calls(section(call("now", "{}")), Call("now", "{}", "now")),
    calls(WRITTEN.partition("1}")[0], Call("add", '{"a": ', "functions.add:0")),
    Case(section(call("functions.made_up:0", "{}")), [Content(section(call("functions.made_up:0", "{}")))]),
    Case(
        section(call("functions.add:0", '{"a": 1}'), call("functions.made_up:1", "{}")),
        [ADD, Content(f"{call('functions.made_up:1', '{}')}<|tool_calls_section_end|>")],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:80] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Kimi(Think()), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(Kimi(Think()), opens="<think>")
