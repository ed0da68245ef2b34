"""OpenAI's Responses against the real worker process: streamed and whole, and a call with its output."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall

from tests.unit.remote.worker.http.test_openai_model import plain_client

__all__ = ["plain_client"]  # the fixture

pytestmark = pytest.mark.model

WEATHER: Any = {
    "type": "function",
    "name": "get weather.now",
    "description": "Get the weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
GREEDY: Any = {"model": "smol", "extra_body": {"seed": 1}, "temperature": 0, "max_output_tokens": 60}


def test_a_response_streamed_and_whole(plain_client: openai.OpenAI) -> None:
    whole = plain_client.responses.create(input="Name the capital of France.", **GREEDY)
    with plain_client.responses.stream(input="Name the capital of France.", **GREEDY) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "Paris" in whole.output_text
    assert whole.output_text == final.output_text == "".join(deltas)
    assert len(deltas) > 3
    assert whole.usage
    assert final.usage
    assert whole.usage.output_tokens == final.usage.output_tokens


def test_a_call_with_its_output(plain_client: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "Weather in Ulm?"}]
    chosen: Any = {"type": "function", "name": WEATHER["name"]}
    first = plain_client.responses.create(input=asked, tools=[WEATHER], tool_choice=chosen, model="smol")
    (call,) = first.output
    assert isinstance(call, ResponseFunctionToolCall)
    assert (call.name, list(json.loads(call.arguments))) == (WEATHER["name"], ["city"])
    asked += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}]
    second = plain_client.responses.create(input=asked, tools=[WEATHER], model="smol", max_output_tokens=4)
    assert second.output
    assert second.usage
    assert second.usage.input_tokens_details.cached_tokens > 0
