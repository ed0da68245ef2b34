"""Mistral, Devstral, Magistral, Ministral."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content, Reasoning
from rbee_remote.worker.dialects.mistral import Mistral, MistralNamed, MistralNumbered
from rbee_remote.worker.dialects.think import Think
from tests.dialect_cases import Call, Case, calls, check, check_grammar

THINK = Think("[THINK]", "[/THINK]")
ADD = Call("add", '{"a": 1}')

CASES = [
    Case("Hello, world!\nWhat's up?", [Content("Hello, world!\nWhat's up?")]),
    Case("[THINK]I'm\nthinking[/THINK]Hello", [Reasoning("I'm\nthinking"), Content("Hello")]),
    Case('[THINK]I\'m[/THINK][TOOL_CALLS]add[ARGS]{"a": 1}', [Reasoning("I'm"), ADD]),
    Case("[THINK]so [TOOL_CALLS]add[ARGS]{} and[/THINK]x", [Reasoning("so [TOOL_CALLS]add[ARGS]{} and"), Content("x")]),
    # Lists.
    calls('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "123456789"}]', ADD),
    calls(
        '[TOOL_CALLS][{"id": "123456789", "name": "add", "arguments": {"a": 1}}]', Call("add", '{"a": 1}', "123456789")
    ),
    calls('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}, {"name": "now", "arguments": {}}]', ADD, Call("now")),
    calls('[TOOL_CALLS]{"name": "add", "arguments": {"a": 1}}', ADD),
    calls('[TOOL_CALLS][{"name": "run", "arguments": {"code": "]}[{"}}]', Call("run", '{"code": "]}[{"}')),
    # Names.
    calls('[TOOL_CALLS]add{"a": 1}', ADD),
    calls('[TOOL_CALLS]add[ARGS]{"a": 1}', ADD),
    calls('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}', ADD, Call("now")),
    calls('[TOOL_CALLS]add{"a": 1}now{}', ADD, Call("now")),
    calls('[TOOL_CALLS]add[CALL_ID]000000001[ARGS]{"a": 1}', Call("add", '{"a": 1}', "000000001")),
    Case('Well.[TOOL_CALLS]add[ARGS]{"a": 1}', [Content("Well."), ADD]),
    # Without the marker.
    calls('[{"name": "add", "arguments": {"a": 1}}]', ADD),
    calls('add{"a": 1}now{}', ADD, Call("now")),
    Case("added 1", [Content("added 1")]),
    Case("add", [Content("add")]),
    Case("weather is fine", [Content("weather is fine")]),
    Case("[1, 2]", [Content("[1, 2]")]),
    # Cut off.
    calls("[TOOL_CALLS]add", Call("add", "")),
    calls("[TOOL_CALLS]add[ARGS]", Call("add", "")),
    calls('[TOOL_CALLS]add[ARGS]{"a": ', Call("add", '{"a": ')),
    calls('[TOOL_CALLS][{"name": "add", "arguments": {"a": ', Call("add", '{"a": ')),
    # No calls.
    Case('[TOOL_CALLS]made_up[ARGS]{"a": 1}', [Content('[TOOL_CALLS]made_up[ARGS]{"a": 1}')]),
    Case("[TOOL_CALLS]add 1 and 2", [Content("[TOOL_CALLS]add 1 and 2")]),
    Case('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]', [ADD, Content("[TOOL_CALLS]")]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Mistral(THINK), case)


@pytest.mark.parametrize("family", [Mistral, MistralNamed, MistralNumbered])
def test_what_the_grammar_allows_is_read(family: type[Mistral]) -> None:
    check_grammar(family(THINK), opens="[THINK]")
