"""What llama-server has beside OpenAI's API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.engine import loads
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.http.test_openai import HERMES, says


async def test_tokens_and_back(folder: Path) -> None:
    async with running(folder, loads(says("a"))) as worker:
        tokens = (await worker.client.post("/tokenize", json={"content": "aé"})).json()["tokens"]
        told = (await worker.client.post("/v1/tokenize", json={"content": "aé", "with_pieces": True})).json()["tokens"]
        back = await worker.client.post("/detokenize", json={"tokens": [*tokens, *tokens]})
        around = (await worker.client.post("/tokenize", json={"content": "aé", "add_special": True})).json()["tokens"]
    assert [each["id"] for each in told] == tokens
    assert [each["piece"] for each in told] == ["a", [0xC3], [0xA9]], "a part of a character is its bytes"
    assert back.json() == {"content": "aéaé"}
    assert around[-len(tokens) :] == tokens


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"content": "\ud800"}, "content"),
        ("/apply-template", {}, "messages"),
    ],
)
async def test_what_cannot_be_read_names_the_field(folder: Path, path: str, body: dict[str, Any], field: str) -> None:
    async with running(folder, loads(says("a"))) as worker:
        answer = await worker.client.post(path, content=json.dumps(body))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field), answer.text


async def test_a_chat_as_the_model_is_given_it(folder: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}
    async with running(folder, loads(says("a", HERMES))) as worker:
        answer = await worker.client.post("/apply-template", json=chat)
    assert answer.json() == {"prompt": "hellohi"}
