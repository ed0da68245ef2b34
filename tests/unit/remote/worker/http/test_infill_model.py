"""llama-server's own completions and infill, by llama.cpp."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import Engine, Progress
from tests import tiny_models
from tests.unit.remote.worker.http.test_app import running

pytestmark = pytest.mark.model


async def test_a_gap_is_what_the_vocabulary_says(tmp_path: Path) -> None:
    model = tiny_models.write(tmp_path / "m.gguf", "llama", fills_in=True)

    def load(config: WorkerConfig, progress: Progress) -> Engine:
        from rbee_remote.worker.llama.engine import load_engine

        return load_engine(dataclasses.replace(config, path=str(model)), progress)

    asked: dict[str, Any] = {"input_prefix": "a<|fim_suffix|>", "input_suffix": "b", "n_predict": 4, "seed": 1}
    (folder := tmp_path / "w").mkdir()
    async with running(folder, load, ctx=128, slots=1, options=WorkerOptions(threads=1)) as worker:
        filled = (await worker.client.post("/infill", json={**asked, "return_tokens": True})).json()
        named = {name: await token_of(worker.client, name) for name in tiny_models.FILLING_IN}
        body = {"prompt": filled["prompt"], "n_predict": 4, "seed": 1, "return_tokens": True, "n_probs": 3}
        again = (await worker.client.post("/completion", json=body)).json()
    prefix, suffix, middle = named.values()
    assert [filled["prompt"].count(token) for token in (prefix, suffix, middle)] == [1, 1, 1], "text is no token"
    assert filled["prompt"][1] == prefix
    assert filled["prompt"][-1] == middle
    assert again["tokens"] == filled["tokens"]
    assert [each["id"] for each in again["completion_probabilities"]] == again["tokens"]


async def token_of(client: Any, name: str) -> int:
    (token,) = (await client.post("/tokenize", json={"content": name})).json()["tokens"][-1:]
    return int(token)
