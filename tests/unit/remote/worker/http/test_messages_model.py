"""The Messages API of the real worker process, with the model as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.unit.remote.worker.http.test_openai_model import serving

pytestmark = pytest.mark.model

TOOL: Any = {
    "name": "get_weather",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Ulm"]}}, "required": ["city"]},
}


def _body(cch: str, *turns: str) -> dict[str, Any]:
    header = f"x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch={cch};"
    system = [{"type": "text", "text": text} for text in (header, "You answer in few words. " * 20)]
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    return {"model": "smol", "system": system, "messages": messages, "max_tokens": 16, "temperature": 0}


def test_a_conversation_with_a_line_that_changes_reuses_all_that_was_computed(
    model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving(model_path, tmp_path_factory.mktemp("messages")) as client:
        question = "Name the capital of France."
        first = _ask(client, _body("36ee5", question))
        said = first["content"][0]["text"]
        second = _ask(client, _body("0aaa9", question, said, "And of Italy?"))
        call = _ask(client, {**_body("1", question), "tools": [TOOL], "tool_choice": {"type": "any"}, "max_tokens": 80})
        going_on = _ask(client, _body("2", "Count to ten.", "1, 2, 3, 4,"))
    assert "Paris" in said
    assert (first["stop_reason"], first["stop_sequence"]) in (("end_turn", None), ("max_tokens", None))
    before = first["usage"]["input_tokens"] + first["usage"]["output_tokens"]
    assert before > 110
    assert second["usage"]["cache_read_input_tokens"] >= before - 2
    assert second["usage"]["input_tokens"] < 30
    assert (call["stop_reason"], call["content"][-1]["input"]) == ("tool_use", {"city": "Ulm"})
    assert going_on["content"][0]["text"].lstrip().startswith("5")


def _ask(client: openai.OpenAI, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post("/messages", body=body, cast_to=str)
    told: dict[str, Any] = json.loads(answer)
    return told
