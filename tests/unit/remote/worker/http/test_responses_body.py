"""What a body of the Responses API means: messages, tools, the answer's form; and what it cannot have here."""

from __future__ import annotations

from typing import Any

import pytest

from rbee_remote.protocol import GenerateRequest, Message, RemoteError
from rbee_remote.worker.http.answers.form import Job
from rbee_remote.worker.http.responses.body import read

USER = Message("user", "hi")
CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Ulm"}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
RAIN = Message("tool", "rain", tool_call_id="c1", name="weather")
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}
WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": None}


def asks(**values: Any) -> Job:
    return read({"model": "m", "input": "hi", **values})


def requested(**values: Any) -> GenerateRequest:
    return asks(**values).parts[0].request


def said(role: str, text: Any, kind: Any = "input_text") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}]}


ITEMS: list[tuple[Any, list[Message]]] = [
    ("hi", [USER]),
    ([{"role": "user", "content": "hi"}], [USER]),
    ([said("user", "hi")], [USER]),
    ([{"role": "user", "content": [{"type": "input_text", "text": t} for t in "hi"]}], [USER]),
    ([{"role": "developer", "content": "a"}, said("system", "b"), said("user", "hi")],
     [Message("system", "a\n\nb"), USER]),
    ([said("user", "hi"), {"role": "developer", "content": "a"}], [USER, Message("system", "a")]),
    ([said("assistant", "yes", "output_text"), said("assistant", "no", "output_text")],
     [Message("assistant", "yes"), Message("assistant", "no")]),
    ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}], [Message("assistant", "no")]),
    ([CALL, OUTPUT], [Message("assistant", "", (CALLED,)), RAIN]),
    ([said("assistant", "let me", "output_text"), CALL, OUTPUT], [Message("assistant", "let me", (CALLED,)), RAIN]),
    ([THOUGHT, CALL, OUTPUT], [Message("assistant", "", (CALLED,), reasoning="so"), RAIN]),
    ([THOUGHT, said("assistant", "yes", "output_text")], [Message("assistant", "yes", reasoning="so")]),
    ([{**THOUGHT, "content": None, "summary": [{"type": "summary_text", "text": "s"}]}, CALL],
     [Message("assistant", "", (CALLED,), reasoning="s")]),
    ([{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "xyz"}, CALL],
     [Message("assistant", "", (CALLED,))]),
    ([CALL, {**OUTPUT, "output": [{"type": "input_text", "text": "rain"}]}],
     [Message("assistant", "", (CALLED,)), RAIN]),
    ([CALL, THOUGHT, {**CALL, "call_id": "c2"}, OUTPUT],
     [Message("assistant", "", (CALLED, {**CALLED, "id": "c2"}), reasoning="so"), RAIN]),
    ([{"type": "web_search_call", "id": "w"}, said("user", "hi")], [USER]),
    ([{"role": "user", "content": None}], [Message("user", "")]),
    ([said("user", None)], [Message("user", "")]),
    ([{"role": "user", "content": ["h", {"text": "i"}]}], [USER]),
]  # fmt: skip


@pytest.mark.parametrize(("items", "messages"), ITEMS)
def test_items_become_messages(items: Any, messages: list[Message]) -> None:
    assert list(requested(input=items).messages) == messages


def test_instructions_and_the_first_system_message_are_one() -> None:
    asked = requested(
        instructions="a", input=[{"role": "developer", "content": "b"}, {"role": "user", "content": "hi"}]
    )
    assert asked.messages == (Message("system", "a\n\nb"), USER)
    assert requested(instructions="a").messages == (Message("system", "a"), USER)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "is missing"),
    ({"input": []}, "input", "not empty"),
    ({"input": [5]}, "input[0]", "must be an object"),
    ({"input": [{}]}, "input[0].type", "is missing"),
    ({"input": [{"type": 5}]}, "input[0].type", "must be a string"),
    ({"input": [{"role": "robot", "content": ""}]}, "input[0].role", "got 'robot'"),
    ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "a list of parts"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
     "input[0].content[0]", "reads text alone"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "'input_file'"),
    ({"input": [said("user", 5)]}, "input[0].content[0].text", "must be a string"),
    ({"input": [said("user", "x", ["input_text"])]}, "input[0].content[0]", "must be a text part"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "is missing"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "is missing"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "send the item itself"),
    ({"input": [{"id": "x"}]}, "input[0]", "send the item itself"),
    ({"input": [{"type": "web_search_call"}]}, "input", "no item that this worker reads"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation"),
    ({"conversation": {"id": "c"}}, "conversation", "keeps no conversations"),
    ({"prompt": {"id": "p"}}, "prompt", "keeps no prompts"),
    ({"background": True}, "background", "keeps no responses"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "must be a string"),
    ({"tools": [5]}, "tools[0]", "must name the tool"),
    ({"tools": [{"type": "namespace", "name": "x"}]}, "tools[0].tools", "must be a list"),
    ({"tools": [{"type": "namespace", "tools": []}]}, "tools[0].name", "must be a string"),
    ({"tools": [{"type": "namespace", "name": "x", "tools": [{"type": "function"}]}]}, "tools[0].tools[0].name", ""),
    ({"input": [{**CALL, "namespace": 5}]}, "input[0].namespace", "must be a string"),
    ({"tools": [{"name": "f"}]}, "tools[0].type", "must name the tool"),
    ({"tools": [WEATHER], "tool_choice": {"type": "web_search"}}, "tool_choice", "asks for a tool of type web_search"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice", "there is no tool 'f'"),
    ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"text": {"format": {"type": "json_schema", "schema": False}}}, "text.format.schema", "no text fits it"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "must be text, json_object or json_schema"),
    ({"text": 5}, "text", ""),
    ({"top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"max_output_tokens": -5}, "max_output_tokens", "must be 0 or more"),
    ({"reasoning": {"effort": 5}}, "reasoning.effort", "must be a string"),
    ({"temperature": "hot"}, "temperature", ""),
    ({"n": 2}, "n", ""),
    ({"input": "\ud800"}, "input", "is not valid Unicode"),
    ({"instructions": "\ud800"}, "instructions", "is not valid Unicode"),
    ({"input": [said("user", "a"), said("user", "\ud800")]}, "input[1].content[0].text", "is not valid Unicode"),
    ({"input": [{**CALL, "arguments": "\ud800"}]}, "input[0].arguments", "is not valid Unicode"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "field", "told"), REFUSED, ids=str)
def test_what_cannot_be_served_is_said_of_its_field(values: dict[str, Any], field: str, told: str) -> None:
    with pytest.raises(RemoteError) as caught:
        asks(**values)
    assert caught.value.details["field"] == field
    assert told in caught.value.message
    assert "response_format" not in caught.value.message


def test_null_is_the_default_of_every_field() -> None:
    names = [
        "instructions", "max_output_tokens", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning",
        "include", "top_logprobs", "temperature", "top_p", "previous_response_id", "conversation", "prompt",
        "background",
        "store", "stream", "stream_options", "metadata", "user", "truncation", "service_tier", "prompt_cache_key",
        "max_tool_calls",
    ]  # fmt: skip
    nothing, null = requested(), requested(**dict.fromkeys(names))
    assert (nothing.sampling, nothing.chat, nothing.tools) == (null.sampling, null.chat, null.tools)


def test_tools_that_openai_runs_are_left_out_and_told() -> None:
    job = asks(tools=[{"type": "web_search"}, WEATHER, {"type": "custom", "name": "patch"}, {"type": "web_search"}])
    tools = job.parts[0].request.tools
    assert [tool["function"]["name"] for tool in tools.functions] == ["weather"]
    assert [warning.split(" are ")[0] for warning in job.warnings] == [
        "tools of type web_search",
        "tools of type custom",
    ]
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "mcp"}, {"type": "function", "name": "weather"}],
    }
    chosen = requested(tools=[WEATHER, {**WEATHER, "name": "f"}], tool_choice=allowed).tools
    assert (chosen.choice, chosen.only) == ("required", ("weather",))


def test_functions_of_a_namespace_are_functions_with_both_names() -> None:
    within = [WEATHER, {"type": "custom", "name": "patch"}]
    space = {"type": "namespace", "name": "mcp__sky", "description": "", "tools": within}
    chosen = {"type": "function", "namespace": "mcp__sky", "name": "weather"}
    told = {**CALL, "namespace": "mcp__sky"}
    job = asks(tools=[WEATHER, space], tool_choice=chosen, input=[told, {**CALL, "call_id": "c2"}])
    request = job.parts[0].request
    names = [tool["function"]["name"] for tool in request.tools.functions]
    assert names == ["weather", "mcp__sky_weather"]
    assert request.tools.only == ("mcp__sky_weather",)
    assert [call["function"]["name"] for call in request.messages[0].tool_calls] == ["mcp__sky_weather", "weather"]
    assert job.warnings == ("tools of type custom are left out: this worker calls functions alone",)


@pytest.mark.parametrize(
    ("effort", "think", "told"),
    [
        ("none", False, ""),
        ("minimal", None, "minimal"),
        ("high", None, "high"),
    ],
)
def test_an_effort_is_for_the_template_to_read(effort: str, think: bool | None, told: str) -> None:
    chat = requested(reasoning={"effort": effort, "summary": "auto"}).chat
    assert (chat.think, chat.reasoning_effort) == (think, told)


def test_the_form_of_an_answer() -> None:
    schema = {"type": "object", "properties": {}}
    asked = requested(text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}})
    assert (asked.sampling.json_schema, asked.sampling.strict) == (schema, True)
    assert requested(text={"format": {"type": "json_object"}}).sampling.json_schema == {"type": "object"}
    assert requested(text={"format": {"type": "text"}, "verbosity": "low"}).sampling.json_schema is None


def test_probabilities_of_all_tokens_stand_in_the_last_events_which_no_other_worker_can_tell() -> None:
    asked = asks(include=["message.output_text.logprobs"], top_logprobs=2)
    assert (asked.parts[0].request.sampling.logprobs, asked.can_resume) == (2, False)
    assert asks().can_resume


def test_where_functions_stand_beside_tools_that_are_left_out() -> None:
    space = {"type": "namespace", "name": "x", "tools": [{"type": "custom"}, {**WEATHER, "name": "in"}]}
    nested = {"type": "function", "function": {"name": "f"}}
    assert asks(tools=[{"type": "web_search"}, WEATHER, space, nested]).places == {
        "tools[0].function": "tools[1]",
        "tools[1].function": "tools[2].tools[1]",
        "tools[2].function": "tools[3].function",
    }
