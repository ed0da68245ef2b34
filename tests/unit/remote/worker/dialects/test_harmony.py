"""gpt-oss."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.harmony import Harmony
from rbee_remote.worker.dialects.interface import Content, Reasoning
from tests.dialect_cases import Call, Case, calls, check, check_grammar

ADD = Call("add", '{"a": 1}')
PROMPT = "<|start|>user<|message|>hi<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>I'm\nthinking<|end|><|start|>assistant"

CASES = [
    Case("<|channel|>final<|message|>Hello,\nworld!", [Content("Hello,\nworld!")]),
    Case("<|channel|>final<|message|>Hello<|return|>", [Content("Hello")]),
    Case("<|channel|>commentary<|message|>Hello", [Content("Hello")]),
    Case(f"{THOUGHT}<|channel|>final<|message|>Hello", [Reasoning("I'm\nthinking"), Content("Hello")]),
    Case("<|channel|>analysis<|message|>I'm", [Reasoning("I'm")]),
    Case(f"{THOUGHT}<|channel|>analysis<|message|>more<|end|>", [Reasoning("I'm\nthinking\nmore")]),
    Case("plain text", [Content("plain text")]),
    Case("plain<|end|><|start|>assistant<|channel|>final<|message|>x", [Content("plainx")]),
    Case(f"{THOUGHT}<|channel|>final<|message|>a <think> b", [Reasoning("I'm\nthinking"), Content("a <think> b")]),
    # Calls.
    calls('<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>', ADD),
    calls('<|channel|>commentary to=functions.add<|message|>{"a": 1}', ADD),
    calls('<|channel|>analysis to=functions.add<|message|>{"a": 1}', ADD),
    calls(' to=functions.add<|channel|>analysis<|message|>{"a": 1}', ADD),
    calls(' to=functions.add<|channel|>analysis <|constrain|>json<|message|>{"a": 1}', ADD),
    calls(' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>', ADD),
    Case(
        f'{THOUGHT} to=functions.add<|channel|>commentary<|message|>{{"a": 1}}<|call|>',
        [Reasoning("I'm\nthinking"), ADD],
    ),
    Case(
        f"{THOUGHT}<|channel|>commentary<|message|>I'll add.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>',
        [Reasoning("I'm\nthinking"), Content("I'll add."), ADD],
    ),
    calls(
        '<|channel|>commentary to=functions.add<|message|>{"a": 1}<|call|><|start|>assistant'
        "<|channel|>commentary to=functions.now<|message|>{}<|call|>",
        ADD,
        Call("now"),
    ),
    # Cut off.
    calls("<|channel|>commentary to=functions.add <|constrain|>", Call("add", "")),
    calls('<|channel|>commentary to=functions.add<|message|>{"a": ', Call("add", '{"a": ')),
    Case("<|channel|>anal", []),
    # No calls.
    Case('<|channel|>commentary to=functions.made_up<|message|>{"a": 1}<|call|>', [Content('{"a": 1}')]),
    Case("<|channel|>commentary to=functions.add<|message|>add 1<|call|>", [Content("add 1")]),
    Case('<|channel|>commentary to=functions.add<|message|>{"a": 1}', [Content('{"a": 1}')], tools=None),
    # The prompt has begun the message.
    Case("<|channel|>final<|message|>Hello", [Content("Hello")], prompt=PROMPT),
    Case("lo", [Content("lo")], prompt=f"{PROMPT}<|channel|>final<|message|>Hel"),
    Case(
        "more<|end|><|start|>assistant<|channel|>final<|message|>x",
        [Reasoning("more"), Content("x")],
        prompt=f"{PROMPT}<|channel|>analysis<|message|>I'm",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:70] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Harmony(), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(Harmony(), opens=f"{PROMPT}<|channel|>analysis<|message|>")


def test_a_reader_says_whether_it_is_in_the_reasoning() -> None:
    reader = Harmony().reader(None, {}, PROMPT)
    reader.feed("<|channel|>analysis<|message|>I'm")
    assert reader.in_reasoning
    reader.feed("<|end|>")
    assert not reader.in_reasoning
