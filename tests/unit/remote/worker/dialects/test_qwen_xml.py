"""Qwen 3 Coder and 3.5, Nemotron 3, StepFun 3.5."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content, Reasoning, Tools
from rbee_remote.worker.dialects.qwen_xml import QwenXml
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

OPEN = "<|im_start|>assistant\n<think>\n"
ADD = "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
BOTH = ADD.replace("</function>", "<parameter=b>\n2\n</parameter>\n</function>")
RUN = "<tool_call>\n<function=run>\n<parameter=code>\n{}\n</parameter>\n</function>\n</tool_call>"
HELLO = 'def hello():\n    print("Hello")\n\nhello()'
EDIT = Tools({"edit": {"properties": {
    "text": {"$ref": "#/$defs/Text"}, "mode": {"enum": ["a", "7"]}, "old": {"type": ["string", "null"]},
    "any": {"anyOf": [{"type": "string"}, {"const": "x"}]}}, "$defs": {"Text": {"type": "string"}}}})  # fmt: skip


def edit(key: str, value: str) -> str:
    return f"<tool_call><function=edit><parameter={key}>{value}</parameter></function></tool_call>"


CASES = [
    Case("I'm\nthinking\n</think>\n\nHello", [Reasoning("I'm\nthinking"), Content("Hello")], prompt=OPEN),
    calls(ADD, Call("add", '{"a": 1}')),
    calls(f"{ADD}\n{BOTH}", Call("add", '{"a": 1}'), Call("add", '{"a": 1, "b": 2}')),
    Case(f"I'm\nthinking\n</think>\n\n{ADD}", [Reasoning("I'm\nthinking"), Call("add", '{"a": 1}')], prompt=OPEN),
    Case(f"Well.\n{ADD}", [Content("Well."), Call("add", '{"a": 1}')]),
    # A call ends the reasoning as well.
    calls(ADD, Call("add", '{"a": 1}'), prompt=OPEN),
    Case(f"Need it.\n{ADD}", [Reasoning("Need it."), Call("add", '{"a": 1}')], prompt=OPEN),
    Case("so <tool_call> is\n</think>x", [Reasoning("so <tool_call> is"), Content("x")], prompt=OPEN),
    # Without the outer tag.
    calls(ADD.removeprefix("<tool_call>\n"), Call("add", '{"a": 1}')),
    Case(f"Well.\n{ADD.removeprefix('<tool_call>')}", [Content("Well."), Call("add", '{"a": 1}')]),
    # Values.
    calls(RUN.format(HELLO), Call("run", '{"code": "def hello():\\n    print(\\"Hello\\")\\n\\nhello()"}')),
    calls(RUN.format("#include\n"), Call("run", '{"code": "#include\\n"}')),
    calls(RUN.format("    indented"), Call("run", '{"code": "    indented"}')),
    calls(RUN.format("7"), Call("run", '{"code": "7"}')),
    calls(RUN.format("<b> </para> 日本 \\"), Call("run", '{"code": "<b> </para> 日本 \\\\"}')),
    calls(
        '<tool_call><function=weather><parameter=city>Köln</parameter><parameter=days>[1, "Mo"]</parameter></function>',
        Call("weather", '{"city": "Köln", "days": [1, "Mo"]}'),
    ),
    calls("<tool_call><function=add><parameter=a>one</parameter></function></tool_call>", Call("add", '{"a": "one"}')),
    calls("<tool_call><function=add><parameter=a>NaN</parameter></function></tool_call>", Call("add", '{"a": "NaN"}')),
    calls(
        "<tool_call><function=add><parameter=c>x\ny</parameter></function></tool_call>", Call("add", '{"c": "x\\ny"}')
    ),
    calls("<tool_call>\n<function=now>\n</function>\n</tool_call>", Call("now")),
    Case(edit("text", "7"), [Call("edit", '{"text": "7"}')], tools=EDIT),
    Case(edit("mode", "7"), [Call("edit", '{"mode": "7"}')], tools=EDIT),
    Case(edit("old", "null"), [Call("edit", '{"old": null}')], tools=EDIT),
    Case(edit("old", "some"), [Call("edit", '{"old": "some"}')], tools=EDIT),
    Case(edit("any", "1"), [Call("edit", '{"any": "1"}')], tools=EDIT),
    # Cut off.
    calls("<tool_call><function=run>", Call("run")),
    calls("<tool_call><function=run><parameter=code>\nab", Call("run", '{"code": "ab')),
    calls(
        "<tool_call><function=weather><parameter=city>K</parameter><parameter=days>[1", Call("weather", '{"city": "K"')
    ),
    # No calls.
    Case(
        "<tool_call><function=made_up></function></tool_call>",
        [Content("<tool_call><function=made_up></function></tool_call>")],
    ),
    Case("a <function=x> b", [Content("a <function=x> b")]),
    Case("a <tool_call> b", [Content("a <tool_call> b")]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(QwenXml(Think()), case)


def test_what_the_grammar_allows_is_read() -> None:
    check_grammar(QwenXml(Think()), opens=OPEN)


def test_a_choice_of_texts_is_enforced() -> None:
    tools = Tools({"edit": {"properties": {"mode": {"enum": ["a", "b"]}}, "required": ["mode"]}}, required=True)
    assert '"a" | "b"' in QwenXml().grammar(tools, None, {}, "")
