"""What is refused on OpenAI's endpoints and how, and what happens to a request whose client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Gate, echo, running
from tests.unit.remote.worker.http.test_openai import WEATHER, Client, chat, says, serving

DEEP: Any = {"type": "function", "function": {"name": "deep", "parameters": {}}}
for _ in range(700):
    DEEP["function"]["parameters"] = {"items": DEEP["function"]["parameters"]}


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


BAD: list[tuple[str, dict[str, Any], str | None, str]] = [
    ("chat/completions", {"messages": []}, "messages", "at least one"),
    ("chat/completions", {"messages": "hi"}, "messages", "expected a list"),
    ("chat/completions", {"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
    ("chat/completions", {"messages": [{"role": "bot", "content": "x"}]}, "messages[0].role", "one of"),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
        "text alone",
    ),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": ["text"], "text": "x"}]}]},
        "messages[0].content[0]",
        "must be a text part",
    ),
    ("chat/completions", chat("\ud800"), "messages[0].content", "not valid Unicode"),
    ("chat/completions", chat("x", temperature="hot"), "temperature", "expected float"),
    ("chat/completions", chat("x", temperature=9), "temperature", "from 0 to"),
    ("chat/completions", chat("x", top_k=1.5), "top_k", "expected int"),
    ("chat/completions", chat("x", stream="yes"), "stream", "expected bool"),
    ("chat/completions", chat("x", n=0), "n", "from 1 to 6"),
    ("chat/completions", chat("x", max_tokens=-3), "max_tokens", "0 or more"),
    ("chat/completions", chat("x", think_budget=-2), "think_budget", "0 or more"),
    ("chat/completions", chat("x", chat_template="{% if"), "chat_template", "cannot be read"),
    (
        "chat/completions",
        chat("x", continue_final_message=True),
        "continue_final_message",
        "continue_final_message needs",
    ),
    (
        "chat/completions",
        chat("x", chat_template_kwargs={"messages": []}),
        "chat_template_kwargs.messages",
        "chat_template_kwargs.messages cannot be set",
    ),
    ("chat/completions", chat("x", logit_bias=3), "logit_bias", "an object"),
    ("chat/completions", chat("x", logit_bias={"a": "much"}), "logit_bias.97", "expected float"),
    ("chat/completions", chat("x", stop=[1]), "stop", "list of strings"),
    ("chat/completions", chat("x", stop=["a"] * 65), "stop", "at most 64"),
    ("chat/completions", chat("x", stream_options={"include_usage": 1}), "stream_options.include_usage", "true"),
    ("chat/completions", chat("x", top_logprobs=1), "top_logprobs", "needs logprobs"),
    ("chat/completions", chat("x", logprobs=True, top_logprobs=21), "top_logprobs", "from 0 to 20"),
    ("chat/completions", chat("x", response_format={"type": "xml"}), "response_format.type", "json_schema"),
    (
        "chat/completions",
        chat("x", response_format={"type": "json_schema"}),
        "response_format.json_schema.schema",
        "JSON schema",
    ),
    ("chat/completions", chat("x", functions=[]), "functions", "use tools"),
    ("chat/completions", chat("x", tools=[{"type": "code"}]), "tools[0].type", "function"),
    ("chat/completions", chat("x", tools=[{"function": {}}]), "tools[0].function.name", "a string"),
    (
        "chat/completions",
        chat("x", tools=[{"function": {"name": "f", "parameters": 3}}]),
        "tools[0].function.parameters",
        "a JSON schema",
    ),
    ("chat/completions", chat("x", tools=[WEATHER], tool_choice="always"), "tool_choice", "must be none"),
    (
        "chat/completions",
        chat("x", tools=[WEATHER], tool_choice={"type": "allowed_tools", "mode": "x", "tools": [WEATHER]}),
        "tool_choice.allowed_tools.mode",
        "auto or required",
    ),
    ("chat/completions", chat("x", tool_choice="required"), "tool_choice", "needs tools"),
    (
        "chat/completions",
        chat("x", tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "none"}}),
        "tool_choice",
        "no tool 'none'",
    ),
    ("completions", {}, "prompt", "must be a text"),
    ("completions", {"prompt": ""}, "prompt", "empty"),
    ("completions", {"prompt": [[97], None]}, "prompt", "must be a text"),
    ("completions", {"prompt": [999]}, "tokens", "from 0 to 257"),
    ("completions", {"prompt": "x", "suffix": "y"}, "suffix", "not served"),
    ("completions", {"prompt": "x", "best_of": 2}, "best_of", "same as n"),
    ("completions", {"prompt": "x", "echo": True, "logprobs": 1}, "echo", "logprobs"),
    ("completions", {"prompt": [97], "echo": True}, "echo", "tokens"),
    ("completions", {"prompt": "x", "logprobs": 99}, "logprobs", "from 0 to 20"),
    ("embeddings", {}, "input", "must be a text"),
    ("embeddings", {"input": [""]}, "input", "empty"),
    ("embeddings", {"input": ["x", "\ud800"]}, "input", "not valid Unicode"),
    ("embeddings", {"input": "x", "encoding_format": "hex"}, "encoding_format", "base64"),
    ("embeddings", {"input": "x", "dimensions": 0}, "dimensions", "1 or more"),
    ("embeddings", {"input": "x", "dimensions": 999}, "dimensions", "258 at most"),
    ("embeddings", {"input": [999]}, "tokens", "from 0 to 257"),
    ("embeddings", {"input": "x" * 5000}, None, "5001 tokens, and the model takes 2048"),
]


async def test_bad_requests_name_the_field(folder: Path) -> None:
    async with serving(folder, says("x")) as (client, worker):
        for path, body, field, words in BAD:
            response = await worker.client.post(f"/v1/{path}", content=_json(body))
            error = response.json()["error"]
            assert (response.status_code, error["param"]) == (400, field), (body, error)
            assert error["type"] == "invalid_request_error"
            assert words in error["message"], error
        answer = await client.chat.completions.create(**chat("still serves"))
    assert answer.choices[0].message.content == "x"


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("chat/completions", b"", 400, "not JSON"),
        ("completions", b"[1]", 400, "JSON object"),
        ("embeddings", b"{" * 100_000, 400, "not JSON"),
        ("chat/completions", _json(chat("x", tools=[DEEP], tool_choice="required")), 400, "nested too deeply"),
        ("completions", b" " * (8 * 2**20 + 1), 413, "larger than"),
    ],
)
async def test_bad_bodies(folder: Path, path: str, content: bytes, status: int, words: str) -> None:
    async with serving(folder, says("x")) as (_, worker):
        response = await worker.client.post(f"/v1/{path}", content=content)
    assert response.status_code == status
    assert words in response.json()["error"]["message"]


async def test_errors_are_those_of_the_client(folder: Path) -> None:
    async with serving(folder, says("x"), ctx=8) as (client, _):
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("gpt-5")
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError) as long:
                await client.chat.completions.create(**chat("much too long"), stream=stream)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    assert long.value.code == "context_length_exceeded"


async def test_a_full_worker_says_when_to_come_again(folder: Path) -> None:
    gate = Gate()
    async with serving(folder, ScriptedEngine(echo, before_step=gate.wait), slots=1, queue=1) as (client, worker):
        first = asyncio.create_task(client.chat.completions.create(**chat("y")))
        await worker.until(lambda status: status["slots_free"] == 0)
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(**chat("x"), n=2)
        second = asyncio.create_task(client.chat.completions.create(**chat("y")))
        gate.let(1000)  # the two were given up: not one of them keeps its place
        assert [(await task).choices[0].message.content for task in (first, second)] == ["y", "y"]
        await worker.until(lambda status: status["state"] == "idle")
    assert caught.value.status_code == 503
    assert caught.value.code == "ALL_SLOTS_BUSY"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_more_than_there_can_ever_be_room_for_is_no_matter_of_coming_again(folder: Path) -> None:
    async with serving(folder, says("x"), slots=1, queue=1) as (client, _):
        with pytest.raises(openai.BadRequestError, match="from 1 to 2, got 3"):
            await client.chat.completions.create(**chat("x"), n=3)
        with pytest.raises(openai.BadRequestError, match="must be 2 at most"):
            await client.completions.create(model="m", prompt=["x"] * 3)


async def test_a_worker_without_keep_alive_serves_all_of_a_list(folder: Path) -> None:
    async with serving(folder, says("x"), slots=1, keep_alive_s=0.0) as (client, worker):
        answer = await client.embeddings.create(model="m", input=["a", "b", "c", "d"])
        assert len(answer.data) == 4
        assert await asyncio.wait_for(asyncio.shield(worker.task), PATIENCE_S) == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_has_canceled(folder: Path, stream: bool) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with serving(folder, engine) as (client, worker):
        call = asyncio.create_task(_read_all(client, stream))
        await worker.until(lambda status: status["slots_free"] == 0)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await worker.until(lambda status: _idle_or_step(status, gate))
    assert engine.steps < 50  # an answer has 100 tokens


def _idle_or_step(status: dict[str, Any], gate: Gate) -> bool:
    """Lets the engine take one step each time that it is asked."""
    gate.let(1)
    return bool(status["state"] == "idle")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_worker_that_is_ended_says_that_it_was_not_the_client(folder: Path, stream: bool) -> None:
    gate = Gate()
    async with serving(folder, ScriptedEngine(echo, before_step=gate.wait)) as (client, worker):
        call = asyncio.create_task(_read_all(client, stream))
        await worker.until(lambda status: status["slots_free"] == 0)
        gate.let(2)
        await worker.client.post("/v1/admin/shutdown", json={"drain": False})
        gate.let(1000)
        with pytest.raises(openai.APIError) as caught:
            await call
    assert caught.value.code == "WORKER_GONE"


async def test_a_client_that_leaves_in_mid_request_is_no_fault_of_the_worker(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(folder, says("x")) as (_, worker):
        for path in ("chat/completions", "embeddings", "inference"):
            _, writer = await asyncio.open_unix_connection(worker.socket)
            writer.write(f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
            await writer.drain()
            writer.close()
        await worker.health()
        await asyncio.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("path", ["inference", "chat/completions"])
async def test_a_body_that_does_not_come_is_refused_in_the_form_of_the_route(
    folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr("rbee_remote.serving.body.BODY_S", 0.2)
    async with serving(folder, says("x")) as (_, worker):
        reader, writer = await asyncio.open_unix_connection(worker.socket)
        writer.write(f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode())
        async with asyncio.timeout(PATIENCE_S):
            head, _, content = (await reader.read(-1)).partition(b"\r\n\r\n")
        writer.close()
    told = json.loads(content)["error"]
    assert head.split()[1] == b"408"
    assert "bytes of the request's body came within" in told["message"]
    assert ("code" in told and told.get("type")) == ("invalid_request_error" if "chat" in path else None)


async def _read_all(client: Client, stream: bool) -> None:
    answer: Any = await client.completions.create(model="m", prompt="x" * 100, n=2, stream=stream)
    if stream:
        async for _ in answer:
            pass


async def test_a_client_that_goes_away_embeds_no_more(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with serving(folder, engine, slots=1) as (client, worker):
        call = asyncio.create_task(client.embeddings.create(model="m", input=["x" * 100] * 50))
        await gate.until_reached()
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        await worker.until(lambda status: _idle_or_step(status, gate))
    assert engine.steps < 50  # a text takes seven, all of them 350


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_wait_for_the_model(folder: Path, stream: bool) -> None:
    gate = Gate()

    def may_load() -> bool:
        gate.wait()
        return True

    async with running(folder, loads(says("hi"), may_load), ctx=64) as worker:
        call = asyncio.create_task(worker.client.post("/v1/chat/completions", json=chat("x", stream=stream)))
        await worker.until(lambda status: status["queued"] + 1 - status["slots_free"] == 1)
        gate.let(1)
        response = await call
    assert response.status_code == 200
    assert "h" in response.text


async def test_an_engine_that_fails_is_an_error_of_the_server(folder: Path) -> None:
    def break_down(step: int) -> None:
        if step > 3:
            raise RuntimeError("out of order")

    engine = ScriptedEngine(echo, before_step=break_down)
    async with running(folder, loads(engine), ctx=256) as worker:
        response = await worker.client.post("/v1/completions", json={"prompt": "abcdef", "stream": True})
        assert response.status_code == 200
        assert '"code": "WORKER_CRASHED"' in response.text
        assert "[DONE]" not in response.text
