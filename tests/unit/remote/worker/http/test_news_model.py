"""A chat with the real model, and what its worker tells of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.protocol.prompt_digest import common_digests, prompt_digests
from rbee_remote.worker.engine.interface import Engine, Progress
from tests.unit.remote.worker.http.test_app import Worker, running
from tests.unit.remote.worker.service.test_news import following

pytestmark = pytest.mark.model

SYSTEM = (
    "You are a guide who knows the capitals of Europe, their rivers and their bridges. Answer in one sentence. " * 4
)


async def test_a_chat_is_told_turn_by_turn_until_another_prompt_takes_its_place(folder: Path, model_path: Path) -> None:
    def load(config: WorkerConfig, progress: Progress) -> Engine:
        from rbee_remote.worker.llama.engine import load_engine

        return load_engine(replace(config, path=str(model_path)), progress)

    # Several threads that wait for each other are slow on a busy machine.
    settings: dict[str, Any] = {"ctx": 1024, "slots": 1, "keep_alive_s": 300.0, "options": WorkerOptions(threads=1)}
    async with running(folder, load, **settings) as worker, following(worker) as follower:
        messages: list[Any] = [{"role": "system", "content": SYSTEM}]
        before: tuple[str, ...] = ()
        for question in ("Name the capital of France.", "And which river is there?", "Name a bridge over it."):
            messages.append({"role": "user", "content": question})
            digests = prompt_digests({"messages": messages})
            assert common_digests(digests, before) == len(before)
            answer, reused = await ask(worker, messages)
            assert (reused > 0) == bool(before)
            await follower.until_held(digests)
            messages.append({"role": "assistant", "content": answer})
            before = digests
        other = [{"role": "user", "content": "Count: " + ", ".join(map(str, range(100)))}]
        await ask(worker, other)
        await follower.until_held(prompt_digests({"messages": other}))
        assert common_digests(follower.held[0], before) == 0
        _, reused = await ask(worker, messages[:-1])
        assert reused < 10  # what the template begins each prompt with


async def ask(worker: Worker, messages: list[Any]) -> tuple[str, int]:
    """The answer, and how many of the prompt's tokens were computed before."""
    body = {"messages": messages, "max_tokens": 24, "temperature": 0}
    response = await worker.client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    content: str = answer["choices"][0]["message"]["content"]
    reused: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return content, reused
