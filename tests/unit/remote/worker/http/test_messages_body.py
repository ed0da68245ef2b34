"""Bodies of Anthropic's Messages API: what they become, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from rbee_remote.protocol import ChatOptions, ErrorCode, GenerateRequest, RemoteError
from rbee_remote.protocol.prompt_digest import prompt_digests
from rbee_remote.worker.http.anthropic import body, errors

USER: Any = {"role": "user", "content": "hi"}
USE: Any = {"type": "tool_use", "id": "toolu_1", "name": "get.weather", "input": {"city": "Ulm"}}
TOOL: Any = {"name": "get.weather", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
HEADER = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={};"
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}


def read(**values: Any) -> GenerateRequest:
    return body.read({"max_tokens": 9, "messages": [USER], **values}).parts[0].request


def turns(**values: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read(**values).messages]


def text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": each, "cache_control": {"type": "ephemeral"}} for each in texts]


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": content, **more}]}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"system": "s"}, [("system", "s"), ("user", "hi")]),
        ({"system": text("a", "b")}, [("system", "a\nb"), ("user", "hi")]),
        ({"system": None}, [("user", "hi")]),
        (
            {"system": text("x-anthropic-billing-header: cc_version=2.1; cch=36ee5;", "You are")},
            [("system", "You are"), ("user", "hi")],
        ),
        ({"messages": [USER, {"role": "user", "content": text("a", "b")}]}, [("user", "hi\na\nb")]),
        ({"messages": [USER, {"role": "assistant", "content": text("a", "b")}]}, [("user", "hi"), ("assistant", "ab")]),
        ({"messages": [{"role": "system", "content": "s"}, USER]}, [("system", "s"), ("user", "hi")]),
        (
            {"messages": [USER, {"role": "system", "content": text("s")}]},
            [("user", "hi\n<system-reminder>\ns\n</system-reminder>")],
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [USE]}, result("rain", is_error=True)]},
            [("user", "hi"), ("assistant", ""), ("tool", "Error: rain")],
        ),
        ({"messages": [USER, result([*text("a"), IMAGE])]}, [
            ("user", "hi"), ("tool", "a\n[image left out: the model reads text alone]")]),
        ({"messages": [{"role": "user", "content": [
            {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "d"}},
            {"type": "search_result", "source": "u", "title": "R", "content": text("r")}]}]},
         [("user", "T\nd\nR\nu\nr")]),
    ],
)  # fmt: skip
def test_turns(values: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert turns(**values) == expected


def test_a_turn_with_calls_and_what_follows_it() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "x"}
    said: Any = {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}, USE]}
    answered = result(None)
    answered["content"] += text("and now?")
    request = read(messages=[USER, said, answered], tools=[TOOL])
    _, assistant, tool, user = request.messages
    assert (assistant.reasoning, assistant.tool_calls[0]["id"]) == ("hm", "toolu_1")
    assert assistant.tool_calls[0]["function"] == {"name": "get_weather", "arguments": '{"city": "Ulm"}'}
    assert (tool.role, tool.content, tool.name, tool.tool_call_id) == ("tool", "", "get_weather", "toolu_1")
    assert (user.role, user.content) == ("user", "and now?")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, ("auto", (), None)),
        ({"type": "any"}, ("required", (), None)),
        ({"type": "auto", "disable_parallel_tool_use": True}, ("auto", (), False)),
        ({"type": "tool", "name": "get.weather"}, ("required", ("get_weather",), False)),
    ],
)
def test_choices_of_tools(choice: Any, expected: tuple[Any, ...]) -> None:
    tools = read(tools=[TOOL], tool_choice=choice).tools
    assert (tools.choice, tools.only, tools.parallel) == expected
    assert tools.functions[0]["function"] == {"name": "get_weather", "parameters": {"type": "object"}}


def test_what_anthropics_servers_run_is_left_out_and_told() -> None:
    tools = [{"type": "web_search_20250305", "name": "web_search"}, {**TOOL, "type": "custom"}]
    job = body.read({"messages": [USER], "tools": tools, "tool_choice": {"type": "none"}, "system": None})
    assert job.parts[0].request.tools.functions == ()
    assert job.warnings == ("tools of type web_search_20250305 are left out: this worker calls custom tools alone",)
    assert job.parts[0].request.max_tokens is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ChatOptions()),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024.0}}, ChatOptions(think=True, think_budget=1024)),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, ChatOptions(think=False)),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, ChatOptions(reasoning_effort="max")),
        ({"thinking": None, "chat_template_kwargs": {"a": 1}}, ChatOptions(template_kwargs={"a": 1})),
    ],
)
def test_thinking(values: dict[str, Any], expected: ChatOptions) -> None:
    assert read(**values).chat == expected


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_the_form_of_an_answer(name: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    request = read(**{name: {"format": form} if name == "output_config" else form}, top_k=-1, stop_sequences=["", "x"])
    assert (request.sampling.json_schema, request.sampling.top_k, request.stop) == ({"type": "object"}, 0, ("x",))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"messages": []}, "messages: must hold"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"messages\[0\].role: must be user or assistant"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content: is missing"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, r"messages\[0\].content\[0\]: is of type image"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, r"content\[0\].type: is 'hologram'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, r"messages\[0\].content is not valid Unicode"),
        ({"messages": [{"role": "assistant", "content": [{**USE, "input": 4}]}]}, r"input: must be an object"),
        ({"system": [IMAGE]}, r"system\[0\]: must be a text block"),
        ({"thinking": {"type": "deep"}}, "thinking.type: must be"),
        ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "thinking.budget_tokens"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "there is no tool 'other'"),
        ({"tools": [{"input_schema": {}}]}, r"tools\[0\].name: must be a string"),
        ({"tools": [{"name": ""}]}, r"tools\[0\].name: must be a string"),
        ({"tool_choice": {"type": "maybe"}}, "tool_choice.type: must be auto"),
        ({"max_tokens": "x"}, "max_tokens: expected"),
        ({"max_tokens": -3}, "max_tokens: must be 0 or more"),
    ],
)
def test_what_is_refused_names_the_field(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RemoteError, match=told) as caught:
        read(**values)
    assert errors.body(caught.value)["error"]["type"] == "invalid_request_error"


def test_where_functions_stand_beside_tools_that_are_left_out() -> None:
    job = body.read({"messages": [USER], "tools": [{"type": "bash_20250124"}, TOOL]})
    assert job.places == {
        "tools[0].function": "tools[1]",
        "tools[0].function.parameters": "tools[1].input_schema",
    }


def test_null_means_what_is_left_out_means() -> None:
    names = {*body.FIELDS - {"messages", "max_tokens"}, "metadata", "service_tier"}
    plain, null = read(), read(**dict.fromkeys(names))
    assert (plain.sampling, plain.chat) == (null.sampling, null.chat)


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_billing_header_costs_no_prefix(in_blocks: bool) -> None:
    brief = "Be brief. " * 99

    def asked(number: str) -> dict[str, Any]:
        header = HEADER.format(number)
        return {"messages": [USER], "system": text(header, brief) if in_blocks else f"{header}\n{brief}"}

    first, second = asked("36ee5"), asked("ab123")
    assert turns(**first) == turns(system=brief)
    assert prompt_digests(first) == prompt_digests(second)
    assert len(prompt_digests(first)) > 2


def test_text_that_only_looks_like_a_billing_header_stays() -> None:
    said = "The x-anthropic-billing-header: is a line."
    assert turns(system=said)[0] == ("system", said)


def test_an_overloaded_worker_is_told_as_such() -> None:
    error = RemoteError(ErrorCode.ALL_SLOTS_BUSY, "busy")
    assert errors.body(error)["error"]["type"] == "overloaded_error"
