"""What a worker says in a stream that ends before its time, in the words of each API."""

from __future__ import annotations

import json

import pytest
from openai.types.responses import ResponseErrorEvent

from rbee.gateway.requests.errors import Form, Refusal, event_of
from rbee.gateway.requests.tracking import error_word


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ({"error": {"code": "WORKER_GONE", "type": "server_error"}}, "WORKER_GONE"),
        ({"type": "error", "error": {"type": "overloaded_error"}}, "overloaded_error"),
        ({"type": "error", "code": "INTERNAL", "error": {"code": "INTERNAL", "type": "server_error"}}, "INTERNAL"),
        ({"type": "response.failed", "response": {"error": {"code": "server_error"}}}, "server_error"),
        ({"type": "response.completed", "response": {"error": None}}, ""),
        ({"choices": [], "note": "error"}, ""),
        ({"response": 5}, ""),
        ([], ""),
    ],
)
def test_the_word_of_an_error(said: object, word: str) -> None:
    assert error_word(json.dumps(said).encode()) == word


def test_the_gateways_own_error_counts_as_the_next_event_of_a_response() -> None:
    refusal = Refusal(503, "WORKER_GONE", "it is gone")
    named, data = event_of(refusal, Form.RESPONSES, 7).decode().removesuffix("\n\n").split("\n")
    event = json.loads(data.removeprefix("data: "))
    ResponseErrorEvent.model_validate(event, strict=True)
    assert (named, event["sequence_number"], event["code"]) == ("event: error", 7, "WORKER_GONE")
    assert event["error"]["message"] == event["message"] == "it is gone"
