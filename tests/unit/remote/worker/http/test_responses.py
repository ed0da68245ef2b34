"""OpenAI's client and a worker's Responses API: the items of an answer, and the events of a stream, strictly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from rbee_remote.protocol import HEADER_TRACK, HEADER_USAGE, RESUME_FIELD, ErrorCode, RemoteError, Resume, encode
from rbee_remote.worker.http.answers.tracking import State
from rbee_remote.worker.http.responses.body import read
from tests.doubles.engine import ScriptedEngine, loads
from tests.unit.remote.worker.http.cutting import parts, tracked
from tests.unit.remote.worker.http.test_app import echo, running
from tests.unit.remote.worker.http.test_openai import HERMES, TellingEngine, says, serving
from tests.unit.remote.worker.http.test_openai_reasoning import THINKS

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


async def stream_of(client: httpx.AsyncClient, **values: Any) -> list[dict[str, Any]]:
    """The events of a stream, each as OpenAI's types have it."""
    answer = await client.post("/v1/responses", json={"input": "x", "stream": True, **values})
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


def events_of(text: str) -> list[dict[str, Any]]:
    found = []
    for number, block in enumerate(each for each in text.split("\n\n") if each and not each.startswith(":")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        EVENTS.validate_python(event, strict=True)
        assert (name, event["sequence_number"]) == (f"event: {event['type']}", number)
        found.append(event)
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The events' types, without the repeated ones."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for name, before in zip(names, ["", *names], strict=False) if name != before]


TEXT = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done",
        "output_item.done"]  # fmt: skip
REASONING = [each.replace("output_text", "reasoning_text") for each in TEXT]
CALLS = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]


async def test_the_events_of_a_stream_come_in_the_documented_order(folder: Path) -> None:
    engine = says(f"<think>\nok so\n</think>\n\nLet me see. {CALL}\n{CALL}", HERMES + THINKS)
    async with running(folder, loads(engine), ctx=2048) as worker:
        events = await stream_of(worker.client, tools=[WEATHER])
    assert kinds(events) == ["created", "in_progress", *REASONING, *TEXT, *CALLS, *CALLS, "completed"]
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["reasoning", "message", "function_call", "function_call"]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == final["output"]
    for index, item in enumerate(done):
        deltas = [e["delta"] for e in events if e["type"].endswith(".delta") and e["output_index"] == index]
        text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        assert "".join(deltas) == text
        assert {e["item_id"] for e in events if e.get("output_index") == index and "item_id" in e} == {item["id"]}
    assert len({item["id"] for item in done}) == 4
    assert (done[2]["name"], json.loads(done[2]["arguments"])) == ("weather", {"city": "Ulm"})
    assert done[2]["call_id"] != done[3]["call_id"]
    assert 0 < final["usage"]["output_tokens_details"]["reasoning_tokens"] < final["usage"]["output_tokens"]


async def test_an_answer_that_is_no_stream_has_the_same_items(folder: Path) -> None:
    body = {"input": "x", "tools": [WEATHER], "metadata": {"a": "b"}, "store": True, "temperature": 0.5, "user": None}
    engine = says(f"<think>\nok so\n</think>\n\nLet me see. {CALL}", HERMES + THINKS)
    async with running(folder, loads(engine), ctx=2048) as worker:
        answer = await worker.client.post("/responses", json=body, headers={HEADER_TRACK: "1"})
        final = (await stream_of(worker.client, **body))[-1]["response"]
    whole = answer.json()
    Response.model_validate(whole, strict=True)
    assert (whole["store"], whole["metadata"], whole["temperature"]) == (False, {"a": "b"}, 0.5)
    assert whole["tools"] == [{**WEATHER, "description": None}]
    told = json.loads(answer.headers[HEADER_USAGE])
    assert (told["prompt"], told["completion"]) == (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"])
    for either in (whole, final):
        for item in either["output"]:
            item.pop("id"), item.pop("call_id", None)
        either.pop("id"), either.pop("created_at"), either.pop("timings"), either.pop("usage")
    assert whole == final


async def test_an_answer_that_is_cut_is_incomplete(folder: Path) -> None:
    async with serving(folder, says("abcdef")) as (client, worker):
        response = await client.responses.create(model="m", input="x", max_output_tokens=3)
        events = await stream_of(worker.client, max_output_tokens=3)
    assert (response.status, response.output_text) == ("incomplete", "abc")
    assert response.incomplete_details
    assert response.incomplete_details.reason == "max_output_tokens"
    assert events[-1]["type"] == "response.incomplete"
    assert events[-2]["item"]["status"] == "incomplete"


async def test_an_answer_of_nothing_is_an_empty_message(folder: Path) -> None:
    async with running(folder, loads(says(""))) as worker:
        events = await stream_of(worker.client)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""
    assert kinds(events) == ["created", "in_progress", *(each for each in TEXT if "delta" not in each), "completed"]


async def test_probabilities_belong_to_the_text(folder: Path) -> None:
    values: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    async with running(folder, loads(TellingEngine(lambda _: "aé".encode()))) as worker:
        events = await stream_of(worker.client, **values)
        told = (await tracked(worker.client, "/v1/responses", {"input": "x", **values}))[0].tracked
        resume = {RESUME_FIELD: encode(Resume({}, {}))}
        refused = await worker.client.post("/v1/responses", json={"input": "x", "stream": True, **values, **resume})
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [(event["delta"], len(event["logprobs"])) for event in deltas] == [("a", 1), ("é", 2)]
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"] == [entry for event in deltas for entry in event["logprobs"]]
    assert told.state is None
    assert "this answer cannot be resumed" in refused.json()["error"]["message"]


class Person(BaseModel):
    name: str


async def test_openais_helpers_understand_it(folder: Path) -> None:
    async with serving(folder, says('{"name": "Ada"}')) as (client, _):
        parsed = await client.responses.parse(model="m", input="x", text_format=Person)
        async with client.responses.stream(model="m", input="x", text_format=Person) as stream:
            deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
    assert parsed.output_parsed == final.output_parsed == Person(name="Ada")
    assert "".join(deltas) == final.output_text == '{"name": "Ada"}'


async def test_a_conversation_goes_on_with_what_came_of_it(folder: Path) -> None:
    async with serving(folder, says(f"<think>\nhm\n</think>\n\n{CALL}", HERMES + THINKS)) as (client, _):
        asked: list[Any] = [{"role": "user", "content": "weather?"}]
        first = await client.responses.create(model="m", input=asked, tools=[WEATHER], instructions="be brief")
        calls = [item for item in first.output if item.type == "function_call"]
        outputs: list[Any] = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls
        ]
        said: Any = [*asked, *first.output, *outputs]
        second = await client.responses.create(model="m", input=said, tools=[WEATHER])
    assert len(calls) == 1
    assert second.status == "completed"


async def test_what_fails_in_mid_answer_is_told_to_those_who_read_events_and_to_openais_client(folder: Path) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise RuntimeError("broken")

    async with serving(folder, ScriptedEngine(echo, before_step=fail)) as (_, worker):
        body = {"input": "hello", "stream": True}
        answer = await worker.client.post("/v1/responses", json=body, headers={HEADER_TRACK: "1"})
    *_, error, failed = events_of(answer.text)
    last = parts(answer.text)[-1]
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["response"]["output"][0]["content"][0]["text"] != ""
    assert error["error"]["code"] == error["code"]
    assert (last.tracked.choice, last.tracked.lines) == (-1, 2)


def test_a_prompt_that_is_too_long_is_told_in_mid_stream_so_that_codex_shortens_it() -> None:
    """As after a wait for a slot that was longer than a heartbeat."""
    error = RemoteError(ErrorCode.USAGE, "the prompt is too long", details={"prompt_tokens": 9, "ctx": 8})
    form = read({"input": "x", "stream": True}).form
    form.begin(State("resp_1", 0, "m", "fp", ()))
    _, failed = form.error(error)
    told = json.loads(failed.split("data: ")[1])
    assert told["response"]["error"] == {"code": "context_length_exceeded", "message": "the prompt is too long"}


async def test_nothing_is_kept(folder: Path) -> None:
    async with serving(folder, says("a")) as (client, _):
        response = await client.responses.create(model="m", input="x")
        with pytest.raises(openai.NotFoundError, match="this server keeps none"):
            await client.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError, match="this server keeps none"):
            await client.responses.delete(response.id)
        with pytest.raises(openai.BadRequestError, match="send the whole conversation"):
            await client.responses.create(model="m", input="x", previous_response_id=response.id)
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.get("/nonsense", cast_to=object)
    assert "POST /v1/responses" in unknown.value.message
    assert "{rest" not in unknown.value.message


async def test_what_codex_sends_is_served(folder: Path) -> None:
    """Its tools, of which one is a function, its own fields, and the items of a turn before."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "permissions"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment_context/>"}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c1"},
        {"type": "function_call_output", "call_id": "c1", "output": "it rains"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** Begin Patch"},
    ]
    tools = [WEATHER, {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}}, {"type": "web_search"}]
    body: dict[str, Any] = {
        "model": "m", "instructions": "You are Codex.", "input": items, "tools": tools, "tool_choice": "auto",
        "parallel_tool_calls": False, "reasoning": {"effort": "medium", "summary": "auto"}, "store": False,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "text": {"verbosity": "low"},
        "service_tier": None, "client_metadata": {"a": "b"},
    }  # fmt: skip
    async with running(folder, loads(says(f"{CALL}\n{CALL}", HERMES)), ctx=2048) as worker:
        events = await stream_of(worker.client, **body)
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["function_call"]
    assert (final["tools"], final["prompt_cache_key"]) == ([{**WEATHER, "description": None}], "k")
    assert len(final["warnings"]) == 4, "two kinds of tools, one of items, and an effort"
    assert all(isinstance(final["usage"][name], int) for name in ("input_tokens", "output_tokens", "total_tokens"))


async def test_a_call_says_the_namespace_of_its_function(folder: Path) -> None:
    """Which is how codex knows a tool of an MCP server."""
    space = {"type": "namespace", "name": "sky", "description": "Above.", "tools": [{**WEATHER, "description": None}]}
    call = CALL.replace('"weather"', '"sky_weather"')
    async with running(folder, loads(says(call, HERMES)), ctx=2048) as worker:
        events = await stream_of(worker.client, tools=[WEATHER, space, {**space, "name": "sea"}])
    final = events[-1]["response"]
    assert [(item["namespace"], item["name"]) for item in final["output"]] == [("sky", "weather")]
    assert [event["name"] for event in events if event["type"].endswith("arguments.done")] == ["weather"]
    assert final["tools"][1] == space
    assert "warnings" not in final


async def test_what_is_left_out_is_told_and_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rbee.worker")
    body = {"input": "x", "tools": [{"type": "file_search_for_this_test"}]}
    async with running(folder, loads(says("a"))) as worker:
        whole = (await worker.client.post("/v1/responses", json=body)).json()
        events = await stream_of(worker.client, **body)
    told = "tools of type file_search_for_this_test are left out: this worker calls functions alone"
    assert whole["warnings"] == events[0]["response"]["warnings"] == events[-1]["response"]["warnings"] == [told]
    assert sum("file_search_for_this_test" in record.getMessage() for record in caplog.records) == 1
