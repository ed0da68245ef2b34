"""SmolLM 3."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.find import dialect_of
from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.smollm import SmolLm
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

ADD = Call("add", '{"a": 1}')

CASES = [
    Case("Hello", [Content("Hello")]),
    calls('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', ADD),
    calls("<code>\nadd(a=1)\nnow()\n</code>", ADD, Call("now")),
    Case("<think>I'm</think>\nSo: <code>add(a=1)</code>", [Reasoning("I'm"), Content("So:"), ADD]),
    calls("<code>add(a=1, b=", Call("add", '{"a": 1')),
    Case("<code>print(1)</code>", [Content("<code>print(1)</code>")]),
    Case("<code>x = add(a=1)</code>", [Content("<code>x = add(a=1)</code>")]),
    Case("<code>add(a=1)\nprint(1)</code>", [ADD, Content("print(1)</code>")]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(SmolLm(Think()), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(SmolLm(Think()), opens="<think>\n")


def test_its_template_says_so() -> None:
    template = (
        "{% if python_tools %}between '<code>' and '</code>' tags{% endif %}<tool_call></tool_call><think></think>"
    )
    assert (dialect_of(template).name, dialect_of(template).reasoning_end) == ("smollm", "</think>")
