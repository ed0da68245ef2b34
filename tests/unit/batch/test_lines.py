"""Lines of the input: what each asks for, and why some ask for nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rbee.batch.defaults import Defaults
from rbee.batch.lines import CHAT, Ask, LineError, Raw, Row, read_line
from rbee.batch.template import Template, UnknownFieldError

HELLO = [{"role": "user", "content": "hello"}]


def ask(fields: Any, template: str | None = None, number: int = 7) -> Ask:
    content = fields if isinstance(fields, bytes | Row) else json.dumps(fields).encode()
    return read_line(Raw(number, content), Template.parse(template) if template else None)


@pytest.mark.parametrize(
    ("fields", "path", "body", "custom_id"),
    [
        (
            {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}},
            "/v1/embeddings",
            {"input": "x"},
            "a",
        ),
        ({"custom_id": 5, "url": "/rerank", "body": {"query": "q"}}, "/v1/rerank", {"query": "q"}, "5"),
        ({"body": {"messages": HELLO, "stream": True}}, CHAT, {"messages": HELLO}, "7"),
        ({"prompt": "hello"}, CHAT, {"messages": HELLO}, "7"),
        ({"prompt": "hello", "max_tokens": 3, "label": "x"}, CHAT, {"messages": HELLO, "max_tokens": 3}, "7"),
        ({"messages": HELLO, "custom_id": "m"}, CHAT, {"messages": HELLO}, "m"),
        (
            {"prompt": "hello", "system": "be brief"},
            CHAT,
            {"messages": [{"role": "system", "content": "be brief"}, *HELLO]},
            "7",
        ),
    ],
)
def test_what_a_line_asks_for(fields: Any, path: str, body: Any, custom_id: str) -> None:
    assert ask(fields) == Ask(7, custom_id, path, body)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (b"{", "it is not JSON"),
        (b"[1]", "it is no JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "it is"),
        ({"url": CHAT}, "body: expected a JSON object"),
        ({"url": "/v1/images", "body": {}}, "url: expected one of /v1/chat/completions"),
        ({"url": 5, "body": {}}, "url: expected one of"),
        ({"method": "GET", "url": CHAT, "body": {}}, "method: only POST"),
        ({"text": "hello"}, "for other fields there is --template"),
        ({"prompt": 5}, "prompt: expected a text"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"messages": "hello"}, "messages: expected a list"),
        ({"custom_id": [1], "prompt": "x"}, "custom_id: expected a text"),
        ({"custom_id": "x" * 513, "prompt": "x"}, "custom_id: expected a text"),
    ],
)
def test_lines_that_ask_for_nothing_say_why(fields: Any, why: str) -> None:
    with pytest.raises(LineError) as caught:
        ask(fields)
    assert why in str(caught.value)


def test_an_error_keeps_the_custom_id() -> None:
    with pytest.raises(LineError) as caught:
        ask({"custom_id": "mine", "prompt": 5})
    assert caught.value.custom_id == "mine"


def test_a_template_takes_fields_of_lines_and_of_rows() -> None:
    asked = ask({"text": "tea", "n": 2, "none": None, "temperature": 0}, "{text} {n}{none} {{x}}")
    assert asked.body == {"messages": [{"role": "user", "content": "tea 2 {x}"}], "n": 2, "temperature": 0}
    row = ask(Row({"text": "tea", "temperature": "0", "custom_id": "r"}), "Translate: {text}")
    assert row == Ask(7, "r", CHAT, {"messages": [{"role": "user", "content": "Translate: tea"}]})


def test_a_template_reaches_nothing_but_fields_by_their_names() -> None:
    assert Template.parse("{a.b} {a[0]}").fill({"a.b": "1", "a[0]": "2"}) == "1 2"
    with pytest.raises(UnknownFieldError, match=r"there is no field 'text.__class__'"):
        Template.parse("{text.__class__}").fill({"text": "x"})


def test_an_unknown_field_is_told_with_those_there_are() -> None:
    with pytest.raises(LineError, match=r"no field 'txt'; did you mean \{text\}\? there are: text, id"):
        ask({"text": "x", "id": "y"}, "{txt}")


@pytest.mark.parametrize("text", ["{text", "text}", "{}", "{text!r}", "{text:>10}", "nothing", "{{text}}"])
def test_what_is_no_template(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Template.parse(text)


ALL = Defaults(
    model="m", system="be brief", max_tokens=9, sampling={"temperature": 0.5}, stop=("x",), form={"regex": "a+"}
)


def test_defaults_are_for_lines_that_do_not_say() -> None:
    assert ALL.body(Ask(1, "1", CHAT, {"messages": HELLO, "model": "gpt-4o"})) == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, *HELLO],
        "temperature": 0.5,
        "max_tokens": 9,
        "stop": ["x"],
        "regex": "a+",
    }
    own = {
        "messages": [{"role": "developer", "content": "rhyme"}, *HELLO],
        "temperature": 1,
        "max_completion_tokens": 2,
        "stop": "y",
        "response_format": {"type": "json_object"},
    }
    assert ALL.body(Ask(1, "1", CHAT, own)) == {**own, "model": "m"}


def test_what_generates_nothing_gets_the_model_alone() -> None:
    assert ALL.body(Ask(1, "1", "/v1/embeddings", {"input": "x"})) == {"model": "m", "input": "x"}
    assert Defaults().body(Ask(1, "1", "/v1/rerank", {"model": "own", "query": None})) == {"model": "own"}


def test_responses_have_other_names() -> None:
    defaults = Defaults(system="be brief", max_tokens=9, form={"json_schema": {"type": "object"}})
    schema = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    assert defaults.body(Ask(1, "1", "/v1/responses", {"input": "x"})) == {
        "input": "x",
        "instructions": "be brief",
        "max_output_tokens": 9,
        "text": {"format": schema},
    }
