"""The app before real workers with a scripted engine: their own account of a stream is what an answer goes on by."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rbee.gateway.requests.app import make_app
from tests.doubles.engine import ScriptedEngine, loads
from tests.doubles.gateway import MODEL, Heard, Setting, SocketWorker, ask, chat, setting
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.http.test_openai import TellingEngine

ANSWER = "Thé quick brown fox. " * 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as path:
        yield Path(path)


def engine() -> ScriptedEngine:
    return TellingEngine(lambda _: ANSWER.encode(), n_batch=512)


@contextlib.asynccontextmanager
async def world_of(folder: Path, *breaks_at: int | None) -> AsyncIterator[Setting]:
    """Two workers, a and b, of which a's connections break."""
    async with contextlib.AsyncExitStack() as stack:
        workers: dict[str, Any] = {}
        for name in ("a", "b"):
            (folder / name).mkdir()
            worker = await stack.enter_async_context(running(folder / name, loads(engine()), ctx=2048, slots=2))
            workers[name] = SocketWorker(worker.socket, *(breaks_at if name == "a" else ()))
            stack.push_async_callback(workers[name].aclose)
        yield setting(**workers)
    for each in folder.iterdir():
        each.rmdir()


def chunks(heard: Heard) -> list[dict[str, Any]]:
    """Without what is another in each answer."""
    assert heard.is_complete, heard.body
    *lines, done, empty = [line for line in heard.body.decode().split("\n\n") if not line.startswith(": ")]
    assert (done, empty) == ("data: [DONE]", "")
    found = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len({(each["id"], each["created"]) for each in found}) == 1
    own = {"id", "created", "timings"}
    return [{name: value for name, value in each.items() if name not in own} for each in found]


VALUES = [{}, {"n": 2, "stream_options": {"include_usage": True}}, {"max_tokens": 0}, {"logprobs": True}]


@pytest.mark.parametrize("values", VALUES)
async def test_an_answer_of_two_workers_is_the_answer_of_one(folder: Path, values: dict[str, Any]) -> None:
    body = chat(temperature=0, seed=3, **values)
    async with world_of(folder, None) as world:
        app = make_app(world.parts)
        whole = await ask(app, body)
        undisturbed, size = chunks(whole), len(whole.body)
        usage = world.recorder.requests[0].usage
        for at in range(1, size, max(1, size // 12)):
            world.fleet.workers["a"]._breaks_at = [at]  # type: ignore[attr-defined]
            found = chunks(await ask(app, body))
            assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, undisturbed))
            if "n" not in values:
                assert found == undisturbed
            ended = world.recorder.requests[-1]
            assert (ended.failovers, ended.finish) == (1, "")
            assert ended.usage is not None
            assert usage is not None
            assert (ended.usage.prompt, ended.usage.completion) == (usage.prompt, usage.completion)
        text = "".join(each["choices"][0]["delta"].get("content") or "" for each in undisturbed if each["choices"])
    assert sorted(text) == sorted(ANSWER * int(values.get("n", 1)) * (values.get("max_tokens") != 0))


async def test_a_response_of_two_workers_is_the_response_of_one(folder: Path) -> None:
    body = {"model": MODEL, "input": "x", "stream": True, "temperature": 0, "seed": 3}
    async with world_of(folder, None) as world:
        app = make_app(world.parts)
        whole = await ask(app, body, "/v1/responses")
        undisturbed, size = events(whole), len(whole.body)
        for at in range(1, size, max(1, size // 12)):
            world.fleet.workers["a"]._breaks_at = [at]  # type: ignore[attr-defined]
            assert events(await ask(app, body, "/v1/responses")) == undisturbed
            ended = world.recorder.requests[-1]
            assert (ended.failovers, ended.finish) == (1, "")
            assert ended.usage is not None
            assert ended.usage.completion == undisturbed[-1]["response"]["usage"]["output_tokens"]
    assert undisturbed[-1]["response"]["output"][0]["content"][0]["text"] == ANSWER


async def test_a_message_of_two_workers_is_the_message_of_one(folder: Path) -> None:
    body = {**chat(temperature=0, seed=3), "max_tokens": 640}
    async with world_of(folder, None) as world:
        app = make_app(world.parts)
        whole = await ask(app, body, "/v1/messages")
        undisturbed, size = message_events(whole), len(whole.body)
        for at in range(1, size, max(1, size // 12)):
            world.fleet.workers["a"]._breaks_at = [at]  # type: ignore[attr-defined]
            assert message_events(await ask(app, body, "/v1/messages")) == undisturbed
            ended = world.recorder.requests[-1]
            assert (ended.failovers, ended.finish) == (1, "")
    texts = [each["delta"]["text"] for each in undisturbed if each["type"] == "content_block_delta"]
    assert "".join(texts) == ANSWER


def message_events(heard: Heard) -> list[dict[str, Any]]:
    """Without what is another in each answer: its id, and how much of the prompt a worker had."""
    assert heard.is_complete, heard.body
    found = []
    for block in heard.body.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        named, told = block.split("\n")
        event = json.loads(told.removeprefix("data: "))
        assert named == f"event: {event['type']}"
        event.get("message", {}).pop("id", None)
        for holder in (event, event.get("message", {})):
            usage = holder.get("usage", {})
            usage["input_tokens"] = usage.pop("input_tokens", 0) + usage.pop("cache_read_input_tokens", 0)
        found.append(event)
    return found


def events(heard: Heard) -> list[dict[str, Any]]:
    """Without what is another in each answer."""
    assert heard.is_complete, heard.body
    found: list[dict[str, Any]] = []
    ids: set[str] = set()
    for block in heard.body.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        named, told = block.split("\n")
        event = json.loads(told.removeprefix("data: "))
        assert (named, event["sequence_number"]) == (f"event: {event['type']}", len(found))
        response = event.get("response", {})
        ids |= {response["id"]} if response else set()
        for each in [response, *response.get("output", []), event, event.get("item", {})]:
            for own in ("id", "created_at", "timings", "item_id"):
                each.pop(own, None)
        (response.get("usage") or {}).pop("input_tokens_details", None)
        found.append(event)
    assert len(ids) == 1
    return found


async def test_a_whole_answer_tells_its_usage_and_a_refusal_is_the_workers_own(folder: Path) -> None:
    async with world_of(folder) as world:
        app = make_app(world.parts)
        heard = await ask(app, chat(stream=False))
        refused = await ask(app, chat(temperature="hot"))
        unknown = await ask(app, chat(), "/v1/unknown")
        whole, *_ = world.recorder.requests
    assert heard.json["choices"][0]["message"]["content"] == ANSWER
    assert "x-rbee-usage" not in heard.headers
    assert whole.usage is not None
    assert whole.usage.completion == heard.json["usage"]["completion_tokens"]
    assert (refused.status, refused.json["error"]["param"]) == (400, "temperature")
    assert unknown.status == 404
    assert "does not serve POST /v1/unknown" in unknown.json["error"]["message"]
