"""Fields that other servers take, taken as they do; and what an answer has beside OpenAI's own fields."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import openai
import pytest

from rbee_remote.protocol import Sampling
from tests.doubles.engine import END, INFO, ScriptedEngine, loads
from tests.unit.remote.worker.http.test_app import Gate, echo, running
from tests.unit.remote.worker.http.test_openai import TellingEngine, chat, says, serving

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"top_k": 40.0}, {"top_k": 40}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"seed": 1.0}, {"seed": 1}),
        ({"seed": -5}, {"seed": 2**32 - 5}),
        ({"seed": 2**32 + 7}, {"seed": 7}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 2**32 - 1}, {"seed": None}),
        ({"repeat_last_n": 7}, {"penalty_last_n": 7}),
        ({"repetition_penalty": 1.5}, {"repeat_penalty": 1.5}),
        ({"logit_bias": {"97": -3}}, {"logit_bias": {"97": -3.0}}),
        ({"logit_bias": {"ab": 2}}, {"logit_bias": {"97": 2.0, "98": 2.0}}),
        ({"logit_bias": [[97, False], ["b", 1.5]]}, {"logit_bias": {"97": -100.0, "98": 1.5}}),
        ({"logit_bias": []}, {}),
        ({"ignore_eos": True}, {"logit_bias": {str(END): -100.0}}),
        ({"ignore_eos": False, "top_k": None, "seed": None, "logit_bias": None}, {}),
    ],
)
async def test_sampling_in_the_words_of_others(folder: Path, said: dict[str, Any], expected: dict[str, Any]) -> None:
    info = dataclasses.replace(INFO, special_tokens={"<begin>": 256, "<end>": END})
    engine = TellingEngine(lambda _: b"hi", info=info, n_batch=512)
    async with serving(folder, engine) as (_, worker):
        for path, body in (("chat/completions", chat("x")), ("completions", {"prompt": "x"})):
            response = await worker.client.post(f"/v1/{path}", json={**body, **said})
            assert response.status_code == 200, response.text
    assert engine.settings == [Sampling(**expected)] * 2


@pytest.mark.parametrize(
    ("said", "expected", "reason"),
    [
        ({"max_tokens": 0}, "", "length"),
        ({"max_tokens": 2.0}, "ab", "length"),
        ({"n_predict": 3}, "abc", "length"),
        ({"n_predict": -1}, "abcd", "stop"),
        ({"max_tokens": None, "n_predict": 1}, "a", "length"),
        ({"stop": ""}, "abcd", "stop"),
        ({"stop": [""]}, "abcd", "stop"),
        ({"stop": ["", "c"]}, "ab", "stop"),
        ({"stop": [*"0123456789efghijk", "d"]}, "abc", "stop"),
        ({"model": "gpt-4o-mini"}, "abcd", "stop"),
        ({"n": None, "stream": None, "stop": None, "response_format": None, "tools": None}, "abcd", "stop"),
        ({"response_format": {"type": None}, "stream_options": {"include_usage": None}}, "abcd", "stop"),
    ],
)
async def test_where_an_answer_ends_in_the_words_of_others(
    folder: Path, said: dict[str, Any], expected: str, reason: str
) -> None:
    async with serving(folder, says("abcd")) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json=chat("x") | said)
        assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, reason)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None}, {"role": "user", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "assistant"}, {"role": "user", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "function", "name": "f", "content": "y"}],
        [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}],
    ],
)
async def test_messages_that_say_nothing_or_say_it_otherwise(folder: Path, messages: list[dict[str, Any]]) -> None:
    async with serving(folder, ScriptedEngine(echo, n_batch=512)) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200, response.text
    assert "".join(response.json()["choices"][0]["message"]["content"].split()) == "xy"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"response_format": {"type": "json_object"}}, '"object"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, '"integer"'),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, '"integer"'),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, '"integer"'),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}}, '"integer"'),
        ({"json_schema": SCHEMA}, '"integer"'),
        ({"guided_json": SCHEMA}, '"integer"'),
        ({"guided_regex": "a+"}, "a+"),
        ({"guided_choice": ["yes", "no."]}, "yes"),
        ({"guided_grammar": 'root ::= "so"'}, "%lark"),
        ({"structured_outputs": {"regex": "b+"}}, "b+"),
        ({"regex": "c+"}, "c+"),
        ({"lark": 'start: "d"'}, '"d"'),
    ],
)
async def test_the_form_of_an_answer_in_the_words_of_others(folder: Path, said: dict[str, Any], words: str) -> None:
    engine = says("x")
    async with serving(folder, engine, slots=1) as (_, worker):
        for path, body in (("chat/completions", chat("x")), ("completions", {"prompt": "x"})):
            engine.constraints.clear()
            response = await worker.client.post(f"/v1/{path}", json={**body, **said})
            assert response.status_code == 200, response.text
            constraint = engine.constraints[0]
            assert constraint is not None
            assert words in constraint.grammar


@pytest.mark.parametrize(
    ("said", "field", "words"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": False}}}, "response_format", "no text"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": []}}}}, "json_schema", "enum"),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "combined with regex"),
        ({"grammar": "root ::= ("}, "grammar", "cannot be used"),
        ({"guided_choice": []}, "guided_choice", "list of texts"),
        ({"structured_outputs": 3}, "structured_outputs", "an object"),
    ],
)
async def test_forms_that_cannot_be_are_refused(folder: Path, said: dict[str, Any], field: str, words: str) -> None:
    async with serving(folder, says("x")) as (_, worker):
        for path, body in (("chat/completions", chat("x")), ("completions", {"prompt": "x"})):
            response = await worker.client.post(f"/v1/{path}", json={**body, **said})
            error = response.json()["error"]
            assert response.status_code == 400
            assert error["param"].startswith(field)
            assert words in error["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_cannot_be_enforced_is_refused_if_strict_and_told_if_not(folder: Path, stream: bool) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    strict: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    async with serving(folder, says("[1]")) as (client, worker):
        response = await worker.client.post("/v1/chat/completions", json=chat("x", response_format=form, stream=stream))
        assert response.status_code == 200
        assert "uniqueItems" in response.text
        assert '"warnings"' in response.text
        with pytest.raises(openai.BadRequestError, match="uniqueItems"):
            await client.chat.completions.create(**chat("x"), response_format=strict, stream=stream)


async def test_an_answer_says_what_it_took(folder: Path) -> None:
    async with serving(folder, says("hello"), slots=1) as (client, worker):
        whole = (await worker.client.post("/v1/chat/completions", json=chat("x" * 200))).json()
        again = (await worker.client.post("/v1/completions", json={"prompt": "x" * 200})).json()
        one = (await worker.client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})).json()
        stream = await client.chat.completions.create(**chat("x"), stream=True)
        chunks = [chunk async for chunk in stream]
    timings = whole["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, 201, 5)
    assert again["timings"]["cache_n"] + again["timings"]["prompt_n"] == 201
    assert again["timings"]["cache_n"] == 200
    for name, steps in (("prompt", 201), ("predicted", 4)):  # the first token comes with the prompt's last step
        assert timings[f"{name}_ms"] > 0
        assert timings[f"{name}_per_second"] == pytest.approx(1000 * steps / timings[f"{name}_ms"])
    assert (one["timings"]["predicted_n"], one["timings"]["predicted_per_second"]) == (1, 0)
    assert whole["system_fingerprint"] == again["system_fingerprint"] == chunks[0].system_fingerprint
    assert [hasattr(chunk, "timings") for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_a_context_that_overflows_is_told_in_figures(folder: Path) -> None:
    async with serving(folder, says("x"), ctx=8) as (_, worker):
        response = await worker.client.post("/v1/chat/completions", json=chat("much too long"))
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (14, 8)
    assert "--" not in error["message"]


async def test_paths_without_the_version_are_served(folder: Path) -> None:
    gate = Gate()

    def may_load() -> bool:
        gate.wait()
        return True

    async with running(folder, loads(says("hi"), may_load), ctx=64) as worker:
        loading = await worker.client.get("/health")
        gate.let(1)
        await worker.until(lambda status: status["state"] == "idle")
        answers = [
            await worker.client.get("/health"),
            await worker.client.get("/models"),
            await worker.client.get("/models/m"),
            await worker.client.post("/chat/completions", json=chat("x")),
            await worker.client.post("/completions", json={"prompt": "x"}),
            await worker.client.post("/embeddings", json={"input": "x"}),
        ]
    assert loading.status_code == 503
    assert "error" in loading.json()
    assert [answer.status_code for answer in answers] == [200] * 6
    assert answers[0].json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("GET", "/chat/completions", 405), ("POST", "/v1/chat/completions/", 404)],
)
async def test_what_is_not_served_is_told_with_what_is(folder: Path, method: str, path: str, status: int) -> None:
    async with serving(folder, says("x")) as (_, worker):
        response = await worker.client.request(method, path)
    error = response.json()["error"]
    assert response.status_code == status
    assert error["type"] == "invalid_request_error"
    assert f"does not serve {method} {path}" in error["message"]
    assert "POST /v1/chat/completions" in error["message"]
    assert not any(word in error["message"] for word in ("admin", "news", "inference", "requests"))
