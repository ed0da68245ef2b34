"""Adapters by llama.cpp over HTTP: listed, and scaled by each request."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.protocol.load import AdapterFile
from rbee_remote.worker.engine.interface import Engine, Progress
from tests import tiny_adapters, tiny_models
from tests.unit.remote.worker.http.test_app import Worker, running

pytestmark = pytest.mark.model


async def answer(worker: Worker, path: str, **body: Any) -> Any:
    found = await worker.client.post(path, json={"temperature": 0, "max_tokens": 8, "seed": 1, **body})
    return found.json()


async def check_other_apis(worker: Worker) -> None:
    """Each computes with the scales that it names, and says in its own form what is wrong with them."""
    turn = [{"role": "user", "content": "hello"}]
    asked: dict[str, dict[str, Any]] = {
        "/v1/responses": {"input": "hello", "max_output_tokens": 8},
        "/v1/messages": {"messages": turn},
        "/v1/embeddings": {"input": ["hello", "well"]},
    }
    for path, body in asked.items():
        scales: list[Any] = [None, [{"id": 0, "scale": 1}], [], [{"id": 0, "scale": 0.5}]]
        given = [await answer(worker, path, **body, lora=each) for each in scales]
        told = [json.dumps(what_was_made(each)) for each in given]
        assert told[0] == told[1], path
        assert len(set(told)) == 3, path
        wrong = await worker.client.post(path, json={**body, "max_tokens": 8, "lora": [{"id": 1, "scale": 1}]})
        assert wrong.status_code == 400
        assert "lora[0].id: the worker has no adapter 1" in wrong.json()["error"]["message"]
        assert ("type" in wrong.json()) == (path == "/v1/messages")


def what_was_made(told: dict[str, Any]) -> Any:
    """Of an answer of any API, what the model made."""
    if "data" in told:
        return [each["embedding"] for each in told["data"]]
    parts = told["output"][0]["content"] if "output" in told else told["content"]
    return [part["text"] for part in parts]


async def test_requests_name_scales(tmp_path: Path) -> None:
    model = tiny_models.write(tmp_path / "m.gguf", "llama")
    path = str(tiny_adapters.write(tmp_path / "a.gguf", 1))

    def load(config: WorkerConfig, progress: Progress) -> Engine:
        from rbee_remote.worker.llama.engine import load_engine

        return load_engine(dataclasses.replace(config, path=str(model)), progress)

    adapters = (AdapterFile("file:/a.gguf", path, 1.0),)
    settings: dict[str, Any] = {"ctx": 512, "slots": 2, "options": WorkerOptions(threads=1), "adapters": adapters}
    (folder := tmp_path / "w").mkdir()
    async with running(folder, load, **settings) as worker:
        listed = await worker.client.get("/lora-adapters")
        assert listed.json() == [{"id": 0, "path": "file:/a.gguf", "scale": 1.0}]
        lists: tuple[Any, ...] = (
            None,
            [{"id": 0, "scale": 1}],
            [{"id": 0, "scale": 1.0}],
            [],
            [{"id": 0, "scale": 0.5}],
        )
        asked = [answer(worker, "/v1/completions", prompt="hello", lora=each) for each in lists]
        texts = [each["choices"][0]["text"] for each in await asyncio.gather(*asked)]
        assert texts[0] == texts[1] == texts[2]
        assert len(set(texts)) == 3
        plain_and_without: tuple[dict[str, Any], ...] = ({}, {"lora": []})
        chat: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
        with_it, without = [
            (await answer(worker, "/v1/chat/completions", **chat, **body))["choices"][0]["message"]["content"]
            for body in plain_and_without
        ]
        assert with_it != without
        await check_other_apis(worker)
        for wrong, words in (
            ([{"id": 1, "scale": 1}], "lora[0].id: the worker has no adapter 1"),
            ([{"id": 0}], "scale"),
            ([{"id": "x", "scale": 1}], "lora[0].id"),
            (7, "lora"),
        ):
            error = (await answer(worker, "/v1/completions", prompt="hello", lora=wrong))["error"]
            assert words in error["message"]
            assert error["type"] == "invalid_request_error"
