"""Answers of the real model that are cut and go on in another engine: the same bytes."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import Engine, Progress
from tests.unit.remote.worker.http.cutting import cut, joined, lines_of, tracked
from tests.unit.remote.worker.http.test_app import running
from tests.unit.remote.worker.http.test_openai import chat

pytestmark = pytest.mark.model

#: ChatML that opens a block of reasoning.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
}
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seed": {"seed": 3, "n": 2},
    "memory": {"seed": 3, "repeat_penalty": 1.3, "dry_multiplier": 0.8, "xtc_probability": 0.5, "logprobs": True},
    "schema": {"seed": 3, "json_schema": PERSON},
    "budget": {"seed": 3, "chat_template": THINKS, "think_budget": 6},
}


async def test_a_cut_answer_is_the_one_that_was_not_cut(folder: Path, model_path: Path) -> None:
    from rbee_remote.worker.llama.engine import load_engine

    def load(config: WorkerConfig, progress: Progress) -> Engine:
        return load_engine(dataclasses.replace(config, path=str(model_path)), progress)

    # Several threads that wait for each other are slow on a busy machine.
    values: dict[str, Any] = {"options": WorkerOptions(threads=1), "ctx": 512, "slots": 2}
    chance = random.Random(1)
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as other:
        async with running(folder, load, **values) as one, running(Path(other), load, **values) as two:
            for name, case in CASES.items():
                body = {**chat("Tell me of a fox."), "max_tokens": 16, **case}
                told = await tracked(one.client, "/v1/chat/completions", body)
                resume, kept = cut(told, lambda _, count: chance.randint(0, count), whole="logprobs" in case)
                rest = await tracked(two.client, "/v1/chat/completions", body, resume)
                assert joined(kept, rest) == lines_of(told), name
            response = {"input": "Tell me of a fox.", "max_output_tokens": 16, "seed": 3}
            told = await tracked(one.client, "/v1/responses", response)
            resume, kept = cut(told, lambda _, count: chance.randint(0, count))
            rest = await tracked(two.client, "/v1/responses", response, resume)
            assert joined(kept, rest) == lines_of(told)
