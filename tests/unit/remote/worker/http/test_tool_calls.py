"""Tools: what is found in a model's text, however it comes, and the schema that forces a call."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.protocol import RemoteError
from rbee_remote.worker.http.openai.tool_calls import Call, CallReader
from rbee_remote.worker.http.openai.tools import tool_use

PARAMETERS: dict[str, dict[str, Any]] = {"add": {}, "weather": {"properties": {"city": {"type": "string"}}}}
ADD = Call("add", '{"a": 1}')
WEATHER = Call("weather", '{"city": "Köln"}')

HERMES_ADD = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
HERMES_WEATHER = '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}</tool_call>'
LLAMA = '{"name": "add", "parameters": {"a": 1}}'

READ: list[tuple[str, str, list[Call]]] = [
    ("plain text", "plain text", []),
    ("", "", []),
    (HERMES_ADD, "", [ADD]),
    (f"{HERMES_ADD}\n{HERMES_WEATHER}", "", [ADD, WEATHER]),
    (f"<think>Hm {{}}.</think>{HERMES_ADD}", "<think>Hm {}.</think>", [ADD]),
    (HERMES_ADD.removesuffix("</tool_call>"), "", [ADD]),
    ('<tool_call>{"name": "made_up", "arguments": {}}</tool_call>', "", [Call("made_up", "{}")]),
    ("<tool_call>add(1)</tool_call>", "<tool_call>add(1)</tool_call>", []),
    (
        "Well.<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "Well.",
        [ADD],
    ),
    (
        "<tool_call><function=weather><parameter=city>Köln</parameter><parameter=b>x\ny</parameter></function>",
        "",
        [Call("weather", '{"city": "Köln", "b": "x\\ny"}')],
    ),
    ("<tool_call><function=weather><parameter=city>7</parameter>", "", [Call("weather", '{"city": "7"}')]),
    ("a <tool_cal is no mark", "a <tool_cal is no mark", []),
    ('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "012345678"}]', "", [ADD]),
    ('[{"name": "add", "arguments": {"a": 1}}]', "", [ADD]),
    ('[TOOL_CALLS]add{"a": 1}', "", [ADD]),
    ('[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]', '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]', []),
    ('add{"a": 1}weather{"city": "Köln"}', "", [ADD, WEATHER]),
    ("added 1", "added 1", []),
    ("weather is fine", "weather is fine", []),
    (LLAMA, "", [ADD]),
    (f"<|python_tag|>{LLAMA}; {LLAMA}", "", [ADD, ADD]),
    (f"\n {LLAMA} \n", "", [ADD]),
    ('{"name": "made_up", "parameters": {}}', '{"name": "made_up", "parameters": {}}', []),
    (f"{LLAMA} and more", f"{LLAMA} and more", []),
    ('{"answer": 42}', '{"answer": 42}', []),
    ("[1, 2]", "[1, 2]", []),
    ('{"name": "add", "parameters": {"a": NaN}}', '{"name": "add", "parameters": {"a": NaN}}', []),
    ('{"name": "add", "parameters": [1]}', '{"name": "add", "parameters": [1]}', []),
    ("[" * 50_000, "[" * 50_000, []),
]


def read(pieces: list[str], *, forced: bool = False) -> tuple[str, list[Call]]:
    reader = CallReader(PARAMETERS, forced=forced)
    shown = "".join([reader.feed(piece) for piece in pieces])
    left, calls = reader.finish()
    return shown + left, calls


@pytest.mark.parametrize(("text", "content", "calls"), READ, ids=[text[:40] for text, _, _ in READ])
def test_calls_are_found(text: str, content: str, calls: list[Call]) -> None:
    assert read([text]) == (content, calls)


@given(st.sampled_from([case for case in READ if len(case[0]) < 1000]), st.lists(st.integers(0, 200)))
def test_it_does_not_matter_how_tokens_cut_the_text(case: tuple[str, str, list[Call]], cuts: list[int]) -> None:
    text, content, calls = case
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in itertools.pairwise(edges)]
    assert read(pieces) == (content, calls)


def test_text_comes_out_as_soon_as_it_is_no_call() -> None:
    reader = CallReader(PARAMETERS, forced=False)
    fed = [reader.feed(piece) for piece in ("wea", "ther", " is fine <", "b> <tool", "_call>", "{")]
    assert fed == ["", "", "weather is fine ", "<b> ", "", ""]


def test_a_forced_text_is_nothing_but_calls() -> None:
    assert read(['{"name": "add", ', '"arguments": {"a": 1}}'], forced=True) == ("", [ADD])
    assert read(['{"name": "add", '], forced=True) == ('{"name": "add", ', [])


def test_ids_are_what_the_strictest_templates_take() -> None:
    encoded = [ADD.encode() for _ in range(2)]
    assert all(call["id"].isalnum() and len(call["id"]) == 9 for call in encoded)
    assert encoded[0]["id"] != encoded[1]["id"]
    assert encoded[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def schema_of(*tools: dict[str, Any], choice: Any = "required", parallel: bool | None = None) -> dict[str, Any]:
    use = tool_use(list(tools), choice, parallel)
    assert use is not None
    assert use.schema is not None
    return use.schema


def call_schema(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def test_a_forced_call_is_one_of_the_tools() -> None:
    number = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = tool("one", parameters=number), tool("two")
    one, two = call_schema("one", number), call_schema("two", NOTHING)
    assert schema_of(*tools) == {"anyOf": [one, two], "$defs": {}}
    assert schema_of(*tools, choice={"type": "function", "function": {"name": "two"}}) == {**two, "$defs": {}}
    listed = schema_of(*tools, parallel=True)
    assert listed == {"type": "array", "items": {"anyOf": [one, two]}, "minItems": 1, "$defs": {}}


def test_definitions_of_a_tools_schema_stay_its_own() -> None:
    def tree(kind: str) -> dict[str, Any]:
        node = {"properties": {"next": {"$ref": "#/$defs/Node"}, "value": {"type": kind}}}
        return {"type": "object", "properties": {"root": {"$ref": "#/$defs/Node"}}, "$defs": {"Node": node}}

    schema = schema_of(tool("one", parameters=tree("string")), tool("two", parameters=tree("integer")))
    references = [call["properties"]["arguments"]["properties"]["root"]["$ref"] for call in schema["anyOf"]]
    nodes = [schema["$defs"][reference.removeprefix("#/$defs/")] for reference in references]
    assert [node["properties"]["value"]["type"] for node in nodes] == ["string", "integer"]
    assert [node["properties"]["next"]["$ref"] for node in nodes] == references
    assert "Node" not in json.dumps(schema)


def test_no_tool_no_use() -> None:
    assert tool_use([], None, None) is None
    assert tool_use([tool("one")], "none", None) is None
    use = tool_use([tool("one")], None, None)
    assert use is not None
    assert (use.schema, use.parallel, use.parameters) == (None, True, {"one": {}})


@pytest.mark.parametrize(
    ("tools", "choice", "field"),
    [
        (["x"], None, "tools[0].type"),
        ([tool("a"), {"type": "function"}], None, "tools[1].function"),
        ([tool("")], None, "tools[0].function.name"),
        ([tool("a b")], None, "tools[0].function.name"),
        ([tool("a", description=1)], None, "tools[0].function.description"),
        ([tool("a", parameters=[])], None, "tools[0].function.parameters"),
        ([tool("a", parameters="{}")], None, "tools[0].function.parameters"),
        ([tool("a")], "always", "tool_choice"),
        ([tool("a")], {"type": "function"}, "tool_choice"),
        ([tool("a", parameters={"$ref": "#/$defs/b", "$defs": 1})], "required", "tools"),
        ([tool("a", parameters={"properties": {"b": {"$ref": "#"}}})], "required", "tools"),
    ],
)
def test_bad_tools_name_the_field(tools: list[Any], choice: Any, field: str) -> None:
    with pytest.raises(RemoteError) as caught:
        tool_use(tools, choice, None)
    assert caught.value.details == {"field": field}
