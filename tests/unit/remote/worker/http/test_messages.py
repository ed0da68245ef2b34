"""A worker's Messages API: what it reads, and the message and events that it answers with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.protocol.prompt_digest import prompt_digests
from rbee_remote.worker.http.anthropic import body, errors
from tests.doubles.engine import loads
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.http.test_openai import HERMES, says
from tests.unit.remote.worker.http.test_openai_reasoning import THINKS

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
HEADER = "x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={};"


def asked(*messages: Any, **values: Any) -> dict[str, Any]:
    said = [{"role": "user", "content": each} if isinstance(each, str) else each for each in messages or ("x",)]
    return {"model": "m", "max_tokens": 500, "messages": said, **values}


async def events_of(client: httpx.AsyncClient, **values: Any) -> list[dict[str, Any]]:
    answer = await client.post("/v1/messages", json=asked(stream=True, **values))
    assert answer.status_code == 200, answer.text
    found = []
    for block in (each for each in answer.text.split("\n\n") if each and not each.startswith(":")):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def blocks_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that the events of a stream make up, as Anthropic's library puts it together."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append({**event["content_block"], "json": ""})
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            kind, block = event["delta"]["type"], blocks[-1]
            name = {"input_json_delta": "json"}.get(kind, kind.removesuffix("_delta"))
            block[name] += event["delta"].get("partial_json", event["delta"].get(name))
    for block in blocks:
        if given := block.pop("json"):
            block["input"] = json.loads(given)
    return blocks


async def test_thinking_text_and_calls_are_blocks_of_their_own(folder: Path) -> None:
    engine = says(f"<think>\nok so\n</think>\n\nLet me see. {CALL}\n{CALL}", HERMES + THINKS)
    async with running(folder, loads(engine), ctx=2048) as worker:
        events = await events_of(worker.client, tools=[WEATHER])
        whole = (await worker.client.post("/messages", json=asked(tools=[WEATHER]))).json()
        hidden = await events_of(worker.client, tools=[WEATHER], thinking={"type": "adaptive", "display": "omitted"})
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    thinking, text, first, second = blocks_of(events)
    assert (thinking["thinking"].strip(), text["text"].strip()) == ("ok so", "Let me see.")
    assert thinking["signature"], "clients send no thinking back that has none"
    assert first["id"] != second["id"]
    assert (first["type"], first["name"], first["input"]) == ("tool_use", "weather", {"city": "Ulm"})
    for block in (first, second, *whole["content"][2:]):
        block.pop("id")
    assert whole["content"] == [thinking, text, first, second]
    assert whole["stop_reason"] == "tool_use"
    usage = events[-2]["usage"]
    assert usage["output_tokens"] == whole["usage"]["output_tokens"] > 0
    assert not [event for event in hidden if event.get("delta", {}).get("type") == "thinking_delta"]
    assert blocks_of(hidden)[0]["signature"] == thinking["signature"]


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
        whole = (await worker.client.post("/v1/messages", json=asked(**values))).json()
    assert (whole["content"], whole["stop_reason"], whole["stop_sequence"]) == (
        [{"type": "text", "text": text}],
        reason,
        stop,
    )


async def test_tokens_are_counted_as_they_are_used(folder: Path) -> None:
    async with running(folder, loads(says("a"))) as worker:
        counted = await worker.client.post("/v1/messages/count_tokens", json=asked("hello", system="Be brief."))
        usage = (await worker.client.post("/v1/messages", json=asked("hello", system="Be brief."))).json()["usage"]
        long = await worker.client.post("/v1/messages/count_tokens", json=asked("x" * 5000))
        refused = await worker.client.post("/v1/messages", json=asked("x" * 5000))
    assert counted.json() == {"input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]}
    assert long.json()["input_tokens"] > 5000, "a client asks to know whether it fits"
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("prompt is too long: ")


def messages_of(*said: Any, **values: Any) -> list[tuple[str, str]]:
    return [(each.role, each.content) for each in body.read(asked(*said, **values)).parts[0].request.messages]


def test_turns_of_one_role_are_one_and_results_are_turns_of_their_own() -> None:
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}}
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}, picture]}
    job = body.read(
        asked(
            "a",
            {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
            system=[{"type": "text", "text": "S1"}, {"type": "text", "text": "S2"}],
        )
    )
    messages = job.parts[0].request.messages
    told = "rain\n[image left out: the model reads text alone]"
    assert [(each.role, each.content) for each in messages] == [
        ("system", "S1\nS2"), ("user", "a\nb"), ("assistant", ""), ("tool", told), ("user", "and now?"),
    ]  # fmt: skip
    assert messages[2].reasoning == "hm"
    assert messages[3].name == "weather"
    assert job.warnings == ("image in a tool_result is left out: this worker reads text alone",)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"messages": []}, "messages: must hold at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role: must be user or assistant"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0]: is of type image"),
        ({"messages": [{"role": "user", "content": [{"type": "new"}]}]}, "messages[0].content[0].type: is 'new'"),
        ({"tools": [{"name": ""}]}, "tools[0].name: must be a string"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice: there is no tool 'x'"),
        ({"thinking": {"type": "much"}}, "thinking.type: must be enabled"),
        ({"max_tokens": -3}, "max_tokens: must be 0 or more"),
        ({"system": [{"type": "image"}]}, "system[0]: must be a text block"),
    ],
)
def test_what_cannot_be_served_names_the_field(values: dict[str, Any], told: str) -> None:
    with pytest.raises(RemoteError) as refused:
        body.read({**asked(), **values})
    said = errors.body(refused.value)
    assert said["type"] == "error"
    assert said["error"]["type"] == "invalid_request_error"
    assert said["error"]["message"].startswith(told)


def test_null_means_what_is_left_out_means() -> None:
    names = (*body.FIELDS - {"messages"}, "metadata", "service_tier")
    plain, null = (body.read({**asked(), **dict.fromkeys(given)}) for given in ((), set(names) - {"max_tokens"}))
    assert plain.parts[0].request.sampling == null.parts[0].request.sampling
    assert plain.parts[0].request.chat == null.parts[0].request.chat


def test_tools_of_anthropics_servers_are_left_out_and_told() -> None:
    job = body.read(asked(tools=[{"type": "web_search_20250305", "name": "web_search"}, WEATHER]))
    assert [each["function"]["name"] for each in job.parts[0].request.tools.functions] == ["weather"]
    assert "web_search_20250305" in job.warnings[0]


@pytest.mark.parametrize("in_blocks", [False, True])
def test_a_billing_header_costs_no_prefix(in_blocks: bool) -> None:
    def system(number: str) -> Any:
        if in_blocks:
            return [{"type": "text", "text": HEADER.format(number)}, {"type": "text", "text": "Be brief. " * 99}]
        return f"{HEADER.format(number)}\n{'Be brief. ' * 99}"

    first, second, without = (asked(system=given) for given in (system("36ee5"), system("ab123"), "Be brief. " * 99))
    assert messages_of(**{"system": first["system"]}) == messages_of(system=without["system"])
    assert prompt_digests(first) == prompt_digests(second)
    assert len(prompt_digests(first)) > 2


def test_text_that_only_looks_like_a_billing_header_stays() -> None:
    said = "The x-anthropic-billing-header: is a line."
    assert messages_of(system=said)[0] == ("system", said)


async def test_what_is_not_there_is_told_in_its_form(folder: Path) -> None:
    async with running(folder, loads(says("a"))) as worker:
        unknown = await worker.client.get("/v1/messages/batches")
        broken = await worker.client.post("/v1/messages", content=b"{")
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    assert "/v1/messages/count_tokens" in unknown.json()["error"]["message"]
    assert (broken.status_code, broken.json()["type"]) == (400, "error")


def test_an_overloaded_worker_is_told_as_such() -> None:
    error = RemoteError(ErrorCode.ALL_SLOTS_BUSY, "busy")
    assert errors.body(error)["error"]["type"] == "overloaded_error"
