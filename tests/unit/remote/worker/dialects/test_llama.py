"""Llama 3 and 4, and functionary 3.1."""

from __future__ import annotations

import pytest

from rbee_remote.worker.dialects.interface import Content
from rbee_remote.worker.dialects.llama import Llama, LlamaPythonic
from tests.dialect_cases import TOOLS, Call, Case, calls, check, check_grammar

ADD = Call("add", '{"a": 1}')
JSON = '{"name": "add", "parameters": {"a": 1}}'

CASES = [
    Case("Hello, world!\nWhat's up?", [Content("Hello, world!\nWhat's up?")]),
    calls(JSON, ADD),
    calls(f"\n {JSON} \n", ADD),
    calls(f"<|python_tag|>{JSON}; {JSON}", ADD, ADD),
    calls(f"[{JSON}, {JSON}]", ADD, ADD),
    calls('{"type": "function", "name": "add", "parameters": {"a": 1}}', ADD),
    calls('{"name": "now", "parameters": {}}', Call("now")),
    calls('<function=add>{"a": 1}</function>', ADD),
    calls('<|python_tag|>weather.call(city="Köln")', Call("weather", '{"city": "Köln"}')),
    calls(f"{JSON} ;\n{JSON};{JSON}\n{JSON}", ADD, ADD, ADD, ADD),
    Case(f"{JSON} I used {{add}}.", [ADD, Content("I used {add}.")]),
    Case(f"{JSON} and more", [ADD, Content("and more")]),
    Case(f"Well. <|python_tag|>{JSON}", [Content("Well."), ADD]),
    Case('Well. <function=add>{"a": 1}</function>', [Content("Well."), ADD]),
    # As Python.
    calls("[add(a=1)]", ADD),
    calls("[add(a=1), now()]", ADD, Call("now")),
    calls("<|python_start|>[add(a=1)]<|python_end|>", ADD),
    calls(
        "[weather(city='a)\\'b', days=[1, \"Mo\"])]",
        Call("weather", '{"city": "a)\'b", "days": [1, "Mo"]}'),
    ),
    calls(
        "[run(code={'a': -1.5, 'b': (True, None, true, null)})]",
        Call("run", '{"code": {"a": -1.5, "b": [true, null, true, null]}}'),
    ),
    calls('[run(code="日本 \\d \\n [()]")]', Call("run", '{"code": "日本 \\\\d \\n [()]"}')),
    # Cut off.
    calls('{"name": "add", "parameters": {"a": ', Call("add", '{"a": ')),
    calls("[add(a=1, b=", Call("add", '{"a": 1')),
    calls("[add(a=1", Call("add", "")),
    calls("[add(", Call("add", "")),
    # No calls.
    Case('{"name": "now"}', [Content('{"name": "now"}')]),
    Case('{"parameters": {}}', [Content('{"parameters": {}}')]),
    Case(
        '{"name": "add", "parameters": {invalid json}',
        [Call("add", "{"), Content("invalid json}")],
    ),
    Case('{"name": "made_up", "parameters": {}}', [Content('{"name": "made_up", "parameters": {}}')]),
    Case('{"answer": 42}', [Content('{"answer": 42}')]),
    Case('{"name": "add", "parameters": [1]}', [Content('{"name": "add", "parameters": [1]}')]),
    Case("[add(1, 2)]", [Content("[add(1, 2)]")]),
    Case("[add(a=b)]", [Content("[add(a=b)]")]),
    Case("[add(**x)]", [Content("[add(**x)]")]),
    Case("[made_up(a=1)]", [Content("[made_up(a=1)]")]),
    Case("[add(a=1), made_up()]", [ADD, Content(", made_up()]")]),
    Case("[1, 2]", [Content("[1, 2]")]),
    Case("add (1)", [Content("add (1)")]),
    Case("<|python_tag|>print(1)", [Content("<|python_tag|>print(1)")]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.text[:60] for case in CASES])
def test_answers_are_split(case: Case) -> None:
    check(Llama(), case)


@pytest.mark.parametrize("family", [Llama, LlamaPythonic])
def test_what_the_grammar_allows_is_read(family: type[Llama]) -> None:
    check_grammar(family())


def test_deep_nesting_is_content() -> None:
    reader = Llama().reader(TOOLS, {}, "")
    text = f"[add(a={'[' * 5000}{']' * 5000})]"
    pieces = [*reader.feed(text), *reader.finish()]
    assert "".join(getattr(piece, "text", "") for piece in pieces if isinstance(piece, Content)) in {text, ""}
