"""The order of events of the Messages API, and that a stream and a whole answer say the same."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_remote.worker.http.anthropic.choice import MessageChoice
from rbee_remote.worker.http.openai.tools import ToolNames
from tests.doubles.engine import ScriptedEngine, loads
from tests.unit.remote.worker.http.test_app import echo, running
from tests.unit.remote.worker.http.test_openai import HERMES, says
from tests.unit.remote.worker.http.test_openai_reasoning import THINKS

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
BODY: Any = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1000}


async def stream_of(client: httpx.AsyncClient, **values: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/messages", json={**BODY, "stream": True, **values})
    assert answer.status_code == 200, answer.text
    events = []
    for block in (each for each in answer.text.split("\n\n") if each and not each.startswith(":")):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of a stream, with what has to hold of the events' order."""
    first, ping, *blocks, last, stop = events
    assert [each["type"] for each in (first, ping, last, stop)] == [
        "message_start", "ping", "message_delta", "message_stop"]  # fmt: skip
    message: dict[str, Any] = first["message"]
    content, is_open = message["content"], False
    for event in blocks:
        if event["type"] == "content_block_start":
            assert (is_open, event["index"]) == (False, len(content))
            content.append({**event["content_block"], "_json": ""})
            is_open = True
            continue
        assert is_open
        assert event["index"] == len(content) - 1
        if event["type"] == "content_block_stop":
            is_open = False
            given = content[-1].pop("_json")
            if content[-1]["type"] == "tool_use":
                content[-1]["input"] = json.loads(given or "{}")
            continue
        delta = dict(event["delta"])
        kind = delta.pop("type")
        ((name, value),) = delta.items()
        assert content[-1]["type"] == {"thinking_delta": "thinking", "signature_delta": "thinking",
                                       "text_delta": "text", "input_json_delta": "tool_use"}[kind]  # fmt: skip
        name = "_json" if name == "partial_json" else name
        content[-1][name] += value
    assert not is_open
    return {**message, **last["delta"], "usage": {**message["usage"], **last["usage"]}}


def same(message: dict[str, Any]) -> dict[str, Any]:
    """Without what is another in each answer."""
    assert message.pop("id").startswith("msg_")
    message["usage"].pop("input_tokens"), message["usage"].pop("cache_read_input_tokens")
    for block in message["content"]:
        block.pop("id", None)
    return message


async def test_a_stream_and_a_whole_answer_say_the_same(folder: Path) -> None:
    engine = says(f"<think>\nok so\n</think>\n\nLet me see. {CALL}\n{CALL}", HERMES + THINKS)
    async with running(folder, loads(engine), ctx=2048) as worker:
        events = await stream_of(worker.client, tools=[WEATHER])
        whole = (await worker.client.post("/messages", json={**BODY, "tools": [WEATHER]})).json()
        hidden = await stream_of(worker.client, tools=[WEATHER], thinking={"type": "adaptive", "display": "omitted"})
    message = gathered(events)
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    thinking, said, call, other = message["content"]
    assert (thinking["thinking"], said["text"].strip()) == ("ok so", "Let me see.")
    assert thinking["signature"]
    assert (call["name"], call["input"], message["stop_reason"]) == ("weather", {"city": "Ulm"}, "tool_use")
    assert call["id"].startswith("toolu_")
    assert call["id"] != other["id"]
    assert gathered(hidden)["content"][0] == {**thinking, "thinking": ""}
    assert same(message) == same(whole)


@pytest.mark.parametrize(
    ("values", "text", "reason", "stop"),
    [
        ({"max_tokens": 3}, "abc", "max_tokens", None),
        ({"stop_sequences": ["x", "de"]}, "abc", "stop_sequence", "de"),
        ({"stop_sequences": ["nothing"]}, "abcdef", "end_turn", None),
    ],
)
async def test_why_it_ended(folder: Path, values: Any, text: str, reason: str, stop: str | None) -> None:
    async with running(folder, loads(says("abcdef"))) as worker:
        whole = (await worker.client.post("/v1/messages", json={**BODY, **values})).json()
    assert (whole["content"], whole["stop_reason"], whole["stop_sequence"]) == (
        [{"type": "text", "text": text}],
        reason,
        stop,
    )


async def test_the_tokens_of_a_prompt_are_counted_as_they_are_computed(folder: Path) -> None:
    async with running(folder, loads(says("ab")), ctx=64) as worker:
        counted = (await worker.client.post("/v1/messages/count_tokens", json=BODY)).json()["input_tokens"]
        first = (await worker.client.post("/v1/messages", json=BODY)).json()["usage"]
        long = {"messages": [{"role": "user", "content": "x" * 500}], "max_tokens": 5}
        more = (await worker.client.post("/messages/count_tokens", json=long)).json()["input_tokens"]
        refused = await worker.client.post("/v1/messages", json=long)
    assert counted == first["input_tokens"] + first["cache_read_input_tokens"] > 0
    assert more > 500
    told = f"prompt is too long: {more} tokens > 64 maximum"
    assert refused.status_code == 400
    assert refused.json()["error"] == {"type": "invalid_request_error", "message": told}


async def test_what_is_wrong_is_told_in_anthropics_form(folder: Path) -> None:
    async with running(folder, loads(says("a"))) as worker:
        wrong = await worker.client.post("/v1/messages", json={**BODY, "stop_sequences": ["x" * 9999]})
        unknown = await worker.client.post("/v1/messages/batches", json={})
        by_get = await worker.client.get("/v1/messages")
        broken = await worker.client.post("/v1/messages", content=b"{")
    assert wrong.json()["type"] == "error"
    assert "stop_sequences[0] must have" in wrong.json()["error"]["message"]
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    assert "/v1/messages/count_tokens" in unknown.json()["error"]["message"]
    assert (by_get.status_code, by_get.json()["type"]) == (405, "error")
    assert (broken.status_code, broken.json()["type"]) == (400, "error")


async def test_what_is_left_out_is_told_and_logged_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rbee.worker")
    more = {"tools": [{"type": "bash_20250124_of_this_test"}], "mcp_servers": [], "speed": None}
    async with running(folder, loads(says("a"))) as worker:
        whole = (await worker.client.post("/v1/messages", json={**BODY, **more})).json()
        message = gathered(await stream_of(worker.client, **more))
    told = ["tools of type bash_20250124_of_this_test are left out: this worker calls custom tools alone"]
    assert whole["warnings"] == message["warnings"] == told
    said = [record.getMessage() for record in caplog.records]
    assert sum("the field mcp_servers is ignored" in each for each in said) == 1
    assert not any("the field speed" in each for each in said)


async def test_what_fails_in_mid_answer_ends_the_stream(folder: Path) -> None:
    def fail(step: int) -> None:
        if step == 3:
            raise RuntimeError("broken")

    async with running(folder, loads(ScriptedEngine(echo, before_step=fail))) as worker:
        events = await stream_of(worker.client, messages=[{"role": "user", "content": "hello"}])
    assert (events[-1]["type"], events[-1]["error"]["type"]) == ("error", "api_error")


def test_a_call_that_was_cut_has_no_input() -> None:
    choice = MessageChoice(ToolNames())
    call = {"index": 0, "id": "1", "name": "f", "arguments": '{"a": '}
    choice.feed({"text": "", "calls": [call], "tokens": 1})
    choice.closing("length")
    assert choice.whole()["content"] == [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]


async def test_models_are_told_with_their_context_by_all_its_names(folder: Path) -> None:
    async with running(folder, loads(says("a")), ctx=512) as worker:
        listed = (await worker.client.get("/v1/models")).json()
        one = (await worker.client.get("/v1/models/m")).json()
    (model,) = listed["data"]
    assert one == model
    assert {model[name] for name in ("context_length", "max_model_len", "max_input_tokens")} == {512}
    assert (listed["has_more"], listed["first_id"], model["type"], model["display_name"]) == (False, "m", "model", "m")


async def test_a_schema_that_cannot_be_used_is_named_as_the_client_sent_it(folder: Path) -> None:
    wrong = {**WEATHER, "input_schema": {"type": "object", "properties": {"a": {"type": "nonsense"}}}}
    tools = [{"type": "bash_20250124"}, WEATHER, {**wrong, "name": "other"}]
    async with running(folder, loads(says("a", HERMES)), ctx=2048) as worker:
        answer = await worker.client.post("/v1/messages", json={**BODY, "tools": tools, "tool_choice": {"type": "any"}})
        twice = await worker.client.post("/v1/messages", json={**BODY, "tools": [tools[0], WEATHER, WEATHER]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("tools[2].input_schema"), answer.text
    assert twice.json()["error"]["message"].startswith("tools[1].name: 'weather' is the name of two"), twice.text
