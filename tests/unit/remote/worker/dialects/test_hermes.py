"""Hermes, Qwen 2.5 and 3, QwQ, and templates without tools."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.hermes import Hermes
from rbee_remote.worker.dialects.interface import Content, Reasoning, Tools
from rbee_remote.worker.dialects.plain import Plain
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import TOOLS, Call, Case, calls, check, check_grammar, read

ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OPEN = "<|im_start|>assistant\n<think>\n"
SHUT = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
ASKED = "what does <think> mean?<|im_end|>\n<|im_start|>assistant\n"
TEXT = ("texts",)

CASES = [
    Case("", []),
    Case("plain text", [Content("plain text")]),
    Case("\n plain \n", [Content("\n plain \n")]),
    Case("<think>\nok so\n</think>\n\nhello", [Reasoning("ok so"), Content("hello")]),
    Case("\n<think>a</think>b", [Reasoning("a"), Content("b")]),
    Case("<think></think>b", [Content("b")]),
    Case("<think>a</think>\n b \n", [Reasoning("a"), Content("b \n")], tools=None),
    Case("<think>a</think>\n b \n", [Reasoning("a"), Content("b \n")]),
    Case(f"a {ADD} b \n", [Content("a"), Call("add", '{"a": 1}'), Content("  b \n")]),
    Case(
        "I'm\nthinking\n</think>\n\nHello,\nworld!",
        [Reasoning("I'm\nthinking"), Content("Hello,\nworld!")],
        prompt=OPEN,
    ),
    Case("</think>Hello", [Content("Hello")], prompt=OPEN),
    Case("<think>again</think>Hello", [Reasoning("again"), Content("Hello")], prompt=OPEN),
    Case(" more</think>Hello", [Reasoning("more"), Content("Hello")], prompt=f"{OPEN}I'm"),
    Case("cut off", [Reasoning("cut off")], prompt=OPEN),
    Case("a </thin", [Reasoning("a </thin")], prompt=OPEN),
    Case("Hello", [Content("Hello")], prompt=SHUT),
    Case("<think>is a tag", [Content("<think>is a tag")], prompt=SHUT),
    Case("It opens a block.", [Content("It opens a block.")], prompt=ASKED),
    Case("a <think> b </think> c", [Content("a <think> b </think> c")]),
    Case("<think>a</think>b <think>c</think>", [Reasoning("a"), Content("b <think>c</think>")]),
    Case("<think>ok</think>hi " + ADD, [Reasoning("ok"), Content("hi " + ADD)], tools=None),
    calls(ADD, Call("add", '{"a": 1}')),
    calls(f"{ADD}\n{ADD}", Call("add", '{"a": 1}'), Call("add", '{"a": 1}')),
    calls(f"\n{ADD}\n", Call("add", '{"a": 1}')),
    Case(f"Well. {ADD}", [Content("Well."), Call("add", '{"a": 1}')]),
    Case(f"Well.\n{ADD}\nDone.", [Content("Well."), Call("add", '{"a": 1}'), Content("\n\nDone.")]),
    Case(f"<think>\nHm {{}}.\n</think>\n\n{ADD}", [Reasoning("Hm {}."), Call("add", '{"a": 1}')]),
    calls(ADD.removesuffix("</tool_call>"), Call("add", '{"a": 1}')),
    calls('<tool_call>{"name": "now"}</tool_call>', Call("now")),
    calls('<tool_call>{"name": "now", "arguments": null}</tool_call>', Call("now")),
    calls('<tool_call>{"name": "now", "arguments": {}}</tool_call>', Call("now")),
    calls('<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', Call("add", '{"a": 1}')),
    calls(
        '<tool_call>{"id": "x1", "name": "add", "parameters": {"a": 1}, "b": [2]}</tool_call>',
        Call("add", '{"a": 1}', "x1"),
    ),
    calls(
        '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}</tool_call>',
        Call("weather", '{"city": "Köln"}'),
    ),
    calls('<tool_call>[{"name": "now", "arguments": {}}, {"name": "now"}]</tool_call>', Call("now"), Call("now")),
    calls(
        '<tool_call>{"name": "run", "arguments": {"code": "}]{[\\"\\\\ 日本 </tool_call> \\u00e9"}}</tool_call>',
        Call("run", '{"code": "}]{[\\"\\\\ 日本 </tool_call> \\u00e9"}'),
    ),
    calls('<tool_call>{"name": "run", "arguments": {"code": "a\nb"}}</tool_call>', Call("run", '{"code": "a\\nb"}')),
    # A call ends the reasoning as well.
    Case(f"I need it.\n\n{ADD}", [Reasoning("I need it."), Call("add", '{"a": 1}')], prompt=OPEN),
    Case(f"<think>I need it.\n{ADD}", [Reasoning("I need it."), Call("add", '{"a": 1}')]),
    Case("as <tool_call> is\n</think>x", [Reasoning("as <tool_call> is"), Content("x")], prompt=OPEN),
    # Cut off.
    calls('<tool_call>{"name": "add"', Call("add", "")),
    calls('<tool_call>{"name": "add", "arguments": {"a": [1, {"b": "x', Call("add", '{"a": [1, {"b": "x')),
    Case('<tool_call>{"name": "ad', [Content('<tool_call>{"name": "ad')]),
    Case("a <tool_cal", [Content("a <tool_cal")]),
    # No calls.
    Case("write <tool_call> to call", [Content("write <tool_call> to call")]),
    Case("<tool_call>add(1)</tool_call>", [Content("<tool_call>add(1)</tool_call>")]),
    Case("<tool_call><tool_call>", [Content("<tool_call><tool_call>")]),
    Case(f"<tool_call> {ADD}", [Content("<tool_call>"), Call("add", '{"a": 1}')]),
    Case(
        '<tool_call>{"name": "made_up", "arguments": {}}</tool_call>',
        [Content('<tool_call>{"name": "made_up", "arguments": {}}</tool_call>')],
    ),
    Case(
        '<tool_call>{"name": "add", "arguments": [1]}</tool_call>',
        [Content('<tool_call>{"name": "add", "arguments": [1]}</tool_call>')],
    ),
    Case(
        '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>',
        [Call("add", '{"a": '), Content("NaN}}</tool_call>")],
    ),
    # Without the marker.
    calls('{"name": "add", "arguments": {"a": 1}}', Call("add", '{"a": 1}')),
    Case('{"name": "made_up", "arguments": {}}', [Content('{"name": "made_up", "arguments": {}}')]),
    Case('{"name": "now"}', [Content('{"name": "now"}')]),
    Case('{"answer": 42}', [Content('{"answer": 42}')]),
    Case("{1: 2}", [Content("{1: 2}")]),
    Case("{[1]: 2}", [Content("{[1]: 2}")]),
    Case("[1, 2]", [Content("[1, 2]")]),
    Case("[" * 3000, [Content("[" * 3000)]),
    Case('so: {"name": "add", "arguments": {"a": 1}}', [Content('so: {"name": "add", "arguments": {"a": 1}}')]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:50] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Hermes(Think()), case)
    check(Plain(Think()), case)


ONE = Tools({"get_weather": {}}, required=True)


@pytest.mark.parametrize("text", ['<tool_call>{"name": "get_', "<tool_call>", '{ "name": "get_', "{"])
def test_a_required_call_is_one_wherever_it_is_cut_off(text: str) -> None:
    check(Hermes(), Case(text, [Call("get_weather", "")], tools=ONE))
    found: list[Content | Reasoning | Call] = [Content("Well."), Call("get_weather", "")]
    check(Hermes(), Case('Well. <tool_call>{"name"', found, tools=ONE))


def test_where_only_calls_may_stand_a_marker_that_is_cut_off_is_no_text() -> None:
    """Of a marker that is no token: one that is cannot be cut."""
    tools = Tools({"get_weather": {}, "clock": {}}, required=True)
    whole = '<tool_call>{"name": "get_weather", "arguments": {}}</tool_call>'
    assert read(Hermes(), "<tool_", tools=tools) == []
    assert read(Hermes(), "<tool_", tools=ONE) == [Call("get_weather", "")]
    for each in (tools, ONE):
        assert read(Hermes(), f"{whole}\n<tool", tools=each) == [Call("get_weather", "{}")]


def test_a_template_without_reasoning_has_none() -> None:
    check(Hermes(), Case("<think>a</think>b", [Content("<think>a</think>b")]))
    assert Hermes().reasoning_end == Plain().reasoning_end == ""
    assert Hermes(Think()).reasoning_end == "</think>"


def test_what_is_certain_comes_at_once() -> None:
    reader = Hermes(Think()).reader(TOOLS, {}, "")
    fed = ["Wel", "l. <", "b> <tool", "_call>{", '"name": "ad', 'd", "arguments"', ": ", '{"a', '": 1', "}", "}"]
    got = [[getattr(piece, "text", "call") for piece in reader.feed(text)] for text in fed]
    assert got == [["Wel"], ["l."], [" <b>"], [], [], [], [], ["call", '{"a'], ['": 1'], ["}"], []]


def test_an_object_that_is_no_call_is_not_held_back() -> None:
    reader = Hermes().reader(TOOLS, {}, "")
    assert reader.feed('{"answer') == []
    assert reader.feed('": ') == [Content('{"answer":')]


def test_the_same_characters_are_text_where_the_marker_is_a_token() -> None:
    reader = Hermes(Think()).reader(TOOLS, {"<think>": 1, "<tool_call>": 2}, "")
    assert reader.feed("<think>a") == [Content("<think>a")]
    assert reader.feed(f" {ADD}") == [Content(f" {ADD}")]
    assert reader.feed("<tool_call>", marker=True) == []


def test_a_reader_says_whether_it_is_in_the_reasoning() -> None:
    reader = Plain(Think()).reader(None, {}, OPEN)
    assert reader.in_reasoning
    reader.feed("a</thi")
    assert reader.in_reasoning
    assert reader.feed("nk>b") == [Content("b")]
    assert not reader.in_reasoning


@pytest.mark.parametrize("dialect", [Hermes(Think()), Hermes()])
def test_what_the_grammar_allows_is_read(dialect: Hermes) -> None:
    check_grammar(dialect, opens=OPEN if dialect.think else "")


def test_without_a_tool_there_is_nothing_to_call() -> None:
    assert "tool_call" not in Hermes().grammar(Tools(), None, {}, "")
