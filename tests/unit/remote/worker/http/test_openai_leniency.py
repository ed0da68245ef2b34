"""Every field of a body, as clients of other servers send it: null for its default, numbers as floats or as text, and
fields that nobody reads."""

from __future__ import annotations

import dataclasses
import logging
import typing
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import Sampling
from rbee_remote.worker.http.answers.ignored import LONGEST, MOST, Ignored
from rbee_remote.worker.http.openai import chat, completions, fields
from rbee_remote.worker.http.openai.embeddings import EmbeddingsBody
from rbee_remote.worker.http.openai.messages import read_messages
from rbee_remote.worker.http.openai.tools import ToolNames
from tests.unit.remote.worker.http.test_openai import WEATHER, says, serving
from tests.unit.remote.worker.http.test_openai import chat as chat_body

CHAT = chat_body("x")
BODIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "chat": (chat.read, CHAT),
    "completions": (completions.read, {"prompt": "x"}),
}
FIELDS = {"chat": chat.FIELDS, "completions": completions.FIELDS}
#: A value other than its default for each field that is a number or a truth.
VALUES: dict[str, Any] = {
    "n": 2, "max_tokens": 5, "n_predict": 5, "max_completion_tokens": 5, "best_of": 1, "thinking_budget": 7,
    "think_budget": 7, "repeat_last_n": 9, "repetition_penalty": 1.5, "mirostat": 2, "seed": 3, "top_k": 4,
}  # fmt: skip
#: Of these two are ignored: the others say what is so anyhow, or are told again.
RESPONSES_MORE = {"store": True, "truncation": "disabled", "metadata": {"a": "b"}, "user": "bee", "background": False}
KINDS = (chat.ChatBody, completions.CompletionBody, Sampling)


def plain(field: str) -> type | None:
    """The type of a field that is a number or a truth."""
    if field == "logprobs":  # one is a number and one a truth
        return None
    for kind in KINDS:
        hint = typing.get_type_hints(kind).get({"repeat_last_n": "penalty_last_n"}.get(field, field))
        for found in (int, float, bool):
            if hint is found or {*typing.get_args(hint)} == {found, type(None)}:
                return found
    return None


def read(endpoint: str, **said: Any) -> Any:
    """What a body asks for, without what is new each time."""
    reader, body = BODIES[endpoint]
    job = reader({**body, **said})
    requests = [dataclasses.replace(part.request, request_id="") for part in job.parts]
    return requests, job.stream, len(job.parts)


def each(*kinds: type) -> list[Any]:
    return [
        pytest.param(endpoint, field, id=f"{endpoint}-{field}")
        for endpoint, known in FIELDS.items()
        for field in sorted(known)
        if not kinds or plain(field) in kinds
    ]


@pytest.mark.parametrize(
    ("endpoint", "field"), [each_ for each_ in each() if each_.values[1] not in ("messages", "prompt")]
)
def test_null_is_the_default(endpoint: str, field: str) -> None:
    assert read(endpoint, **{field: None}) == read(endpoint)


@pytest.mark.parametrize(("endpoint", "field"), each(int, float))
def test_numbers_come_as_floats_and_as_text(endpoint: str, field: str) -> None:
    more = {"logprobs": True} if field == "top_logprobs" else {}
    value = VALUES.get(field, 1)
    expected = read(endpoint, **more, **{field: value})
    assert read(endpoint, **more, **{field: float(value)}) == expected
    assert read(endpoint, **more, **{field: str(value)}) == expected
    assert read(endpoint, **more, **{field: str(float(value))}) == expected


@pytest.mark.parametrize(("endpoint", "field"), each(bool))
def test_truths_come_as_numbers_and_as_text(endpoint: str, field: str) -> None:
    for value in (True, False):
        for said in (int(value), float(value), str(value), str(value).lower()):
            assert read(endpoint, **{field: said}) == read(endpoint, **{field: value})


@pytest.mark.parametrize("seed", [2**64 - 5, -(2**70) - 5, float(2**64 - 2**33), str(2**63)])
def test_seeds_are_as_long_as_anybody_s_hash(seed: Any) -> None:
    (request,), *_ = read("chat", seed=seed)
    assert request.sampling.seed == int(seed) % 2**32


@pytest.mark.parametrize("value", ["", "4x", "0x4", "1e400", "nan", "inf", "٤", "--4", "4" * 30, [4], {}])
def test_what_is_no_number_is_refused_by_the_field_s_name(value: Any) -> None:
    for field in ("max_tokens", "temperature"):
        with pytest.raises(Exception, match=f"^{field}: "):
            fields.read(Sampling if field == "temperature" else chat.ChatBody, {field: value})


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"stream_options": {"include_usage": None, "continuous_usage_stats": None}}, {}),
        ({"response_format": {"type": "text", "json_schema": None}}, {}),
        ({"structured_outputs": {"json": None, "regex": None}}, {}),
        ({"chat_template_kwargs": {"enable_thinking": None}}, {}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"tools": [], "tool_choice": None, "parallel_tool_calls": None}, {}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": None, "name": None}}},
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        ),
        ({"tools": [{**WEATHER, "type": None}]}, {"tools": [WEATHER]}),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "description": None, "strict": None}}]},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
        ),
        ({"tools": [{"function": {"name": "f", "parameters": None}}]}, {"tools": [{"function": {"name": "f"}}]}),
    ],
)
def test_null_is_the_default_in_parts_as_well(said: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read("chat", **said) == read("chat", **expected)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"role": "user", "content": [{"type": "text", "text": None}]}, {"role": "user", "content": ""}),
        ({"role": "user", "content": ["a", "b"]}, {"role": "user", "content": "ab"}),
        ({"role": "user", "content": [{"type": None, "text": "a"}]}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": [{"type": "output_text", "text": "a"}]}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": "a", "name": None, "tool_call_id": None, "refusal": None},
         {"role": "user", "content": "a"}),
        ({"role": "assistant", "content": None, "tool_calls": None, "function_call": None, "audio": None},
         {"role": "assistant"}),
        ({"role": "assistant", "reasoning_content": None, "reasoning": "so"}, {"role": "assistant", "reasoning": "so"}),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": None, "index": None}]},
         {"role": "assistant", "tool_calls": [CALL]}),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": None}}]},
         {"role": "assistant", "tool_calls": [CALL]}),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {}}}]},
         {"role": "assistant", "tool_calls": [CALL]}),
    ],
)  # fmt: skip
def test_messages_of_other_clients(said: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read_messages((said,), ToolNames()) == read_messages((expected,), ToolNames())


async def test_a_bias_of_null_is_none(folder: Path) -> None:
    async with serving(folder, says("x")) as (_, worker):
        response = await worker.client.post("/v1/completions", json={"prompt": "x", "logit_bias": {"97": None}})
    assert response.status_code == 200, response.text


async def test_what_is_ignored_is_told_once_for_each_endpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"user": "bee", "top_k": 3, "store": None, "safety\nid": 1, "extra": "secret"}
    with caplog.at_level(logging.INFO, logger="rbee.worker"):
        async with serving(folder, says("x")) as (_, worker):
            for _ in range(2):
                await worker.client.post("/v1/chat/completions", json={**CHAT, **more})
                await worker.client.post("/v1/completions", json={"prompt": "x", "user": "bee"})
                await worker.client.post("/v1/embeddings", json={"input": "x", "user": "bee"})
                await worker.client.post("/v1/rerank", json={"query": "x", "documents": ["x"], "user": "bee"})
                await worker.client.post("/v1/responses", json={"input": "x", **RESPONSES_MORE})
    told = [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()]
    assert told == [
        "/v1/chat/completions: the field user is ignored",
        "/v1/chat/completions: the field safety\\nid is ignored",
        "/v1/chat/completions: the field extra is ignored",
        "/v1/completions: the field user is ignored",
        "/v1/embeddings: the field user is ignored",
        "/v1/rerank: the field user is ignored",
        "/v1/responses: the field store is ignored",
        "/v1/responses: the field user is ignored",
    ]


def test_made_up_names_fill_neither_the_log_nor_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    ignored = Ignored("/v1/x", {"known"})
    with caplog.at_level(logging.INFO, logger="rbee.worker"):
        for number in range(3 * MOST):
            ignored.note({f"{number:04}{'x' * 1000}": 1, "known": 2})
    assert len(caplog.records) == MOST + 1
    assert "without a word" in caplog.records[-1].getMessage()
    assert all(len(record.getMessage()) < LONGEST + 60 for record in caplog.records)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EmbeddingsBody)])
async def test_null_is_the_default_of_embeddings(folder: Path, field: str) -> None:
    body = {"input": "x", "dimensions": 2.0, field: None} if field != "input" else {"input": "x"}
    async with serving(folder, says("x")) as (_, worker):
        response = await worker.client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
