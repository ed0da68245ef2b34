"""Measuring a worker's speed: over the real socket and engine thread with a scripted engine, and on the real model."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_remote.protocol import WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import BatchToken
from rbee_remote.worker.http import bench
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Gate, echo, running, text

PATH = "/v1/admin/bench"
OPTIONS: dict[str, Any] = {"options": WorkerOptions(threads=3), "slots": 2}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as path:
        yield Path(path)


def events(body: str) -> list[tuple[str, Any]]:
    """The events of a whole stream, comments left out."""
    found = []
    for block in body.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "event" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def request(prompt: int, generated: int, repetitions: int = 1) -> dict[str, int]:
    return {"prompt_tokens": prompt, "generated_tokens": generated, "repetitions": repetitions}


async def test_each_test_is_repeated_after_a_warm_up(folder: Path) -> None:
    engine = ScriptedEngine(echo, n_batch=16)
    async with running(folder, loads(engine), **OPTIONS) as worker:
        response = await worker.client.post(PATH, json=request(40, 5, repetitions=2))
    assert response.headers["content-type"].startswith("text/event-stream")
    *progress, (name, result) = events(response.text)
    assert [data for _, data in progress] == [
        {"test": test, "done": done, "total": 6} for done, test in enumerate(["pp40"] * 3 + ["tg5"] * 3)
    ]
    assert name == "done"
    assert result == {
        "threads": 3,
        "tests": [
            {"test": "pp40", "tokens": 40, "seconds": [0.003, 0.003]},
            {"test": "tg5", "tokens": 5, "seconds": [0.005, 0.005]},
        ],
    }
    assert engine.steps == 3 * 3 + 1 + 2 * 5  # generation is warmed up with one token


@pytest.mark.parametrize(("counts", "tests"), [((40, 0), ["pp40"]), ((0, 5), ["tg5"])])
async def test_a_test_of_no_tokens_is_left_out(folder: Path, counts: tuple[int, int], tests: list[str]) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), **OPTIONS) as worker:
        response = await worker.client.post(PATH, json=request(*counts))
    assert [test["test"] for test in events(response.text)[-1][1]["tests"]] == tests


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (request(0, 0), "prompt_tokens"),
        (request(-1, 5), "prompt_tokens"),
        (request(65, 5), "context of 64"),
        (request(5, 65), "context of 64"),
        (request(5, 5, repetitions=0), "repetitions"),
        ({"repetitions": "many"}, "repetitions"),
    ],
)
async def test_what_cannot_be_measured_is_refused(folder: Path, body: dict[str, Any], named: str) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), **OPTIONS) as worker:
        response = await worker.client.post(PATH, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "USAGE"
    assert named in response.json()["error"]["message"]


async def test_a_worker_at_work_is_not_measured(folder: Path) -> None:
    gate = Gate()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait)), **OPTIONS) as worker:
        asking = asyncio.create_task(worker.generate("abc"))
        await gate.until_reached()
        response = await worker.client.post(PATH, json=request(5, 5))
        gate.let(100)
        assert text(await asking) == "abc"
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "IN_USE"


async def test_requests_wait_while_the_worker_is_measured(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), **OPTIONS) as worker:
        measuring = asyncio.create_task(worker.client.post(PATH, json=request(0, 3)))
        await gate.until_reached()
        again = await worker.client.post(PATH, json=request(0, 3))
        asking = asyncio.create_task(worker.generate("abc"))
        await worker.until(lambda status: status["slots_free"] == 0)
        assert engine.computed == 0
        gate.let(100)
        assert events((await measuring).text)[-1][0] == "done"
        assert text(await asking) == "abc"
    assert again.json()["error"]["code"] == "IN_USE"


async def test_a_client_that_goes_away_ends_the_measurement(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), **OPTIONS) as worker:
        async with worker.client.stream("POST", PATH, json=request(0, 64, repetitions=9)) as response:
            assert response.status_code == 200
            await gate.until_reached()
        async with asyncio.timeout(PATIENCE_S):
            while not engine._interrupted.is_set():
                await asyncio.sleep(0.005)
        gate.let(100)
        await worker.until(lambda status: status["slots_free"] == 2)
        assert engine.steps == 1
        assert text(await worker.generate("abc")) == "abc"


async def test_a_worker_that_is_told_to_stop_now_ends_the_measurement(folder: Path) -> None:
    gate = Gate()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait)), **OPTIONS) as worker:
        measuring = asyncio.create_task(worker.client.post(PATH, json=request(0, 64, repetitions=9)))
        await gate.until_reached()
        await worker.client.post("/v1/admin/shutdown", json={"drain": False})
        gate.let(100)
        name, error = events((await measuring).text)[-1]
        assert (name, error["error"]["code"]) == ("error", "REQUEST_CANCELED")


async def test_a_long_run_is_not_silent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "HEARTBEAT_S", 0.01)
    gate = Gate()
    async with (
        running(folder, loads(ScriptedEngine(echo, before_step=gate.wait)), **OPTIONS) as worker,
        worker.client.stream("POST", PATH, json=request(0, 1)) as response,
    ):
        lines = response.aiter_lines()
        async with asyncio.timeout(PATIENCE_S):
            while not (await anext(lines)).startswith(":"):
                pass
        gate.let(100)
        rest = [line async for line in lines]
    assert "event: done" in rest


async def test_a_bug_in_a_run_is_told(folder: Path) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("llama_decode failed with -3")

    async with running(folder, loads(ScriptedEngine(echo, before_step=fail)), **OPTIONS) as worker:
        response: httpx.Response = await worker.client.post(PATH, json=request(5, 5))
    name, error = events(response.text)[-1]
    assert (name, error["error"]["code"]) == ("error", "INTERNAL")
    assert "llama_decode failed with -3" in error["error"]["message"]


@pytest.mark.model
def test_the_real_engine_is_measured_and_works_on(model_path: Path) -> None:
    from rbee_remote.worker.llama.engine import load_engine

    options = WorkerOptions(threads=1)  # several threads that wait for each other are slow on a busy machine
    config = WorkerConfig("0" * 16, "m", str(model_path), "", options, 256, 1.0, slots=2)
    engine = load_engine(config, lambda share: True)
    try:
        prompt = engine.tokenize("The capital of France is", add_special=True, parse_special=True)
        engine.decode([BatchToken(token, pos, 1, False) for pos, token in enumerate(prompt)])
        short, long = (min(engine.bench(tokens, 0) or 0.0 for _ in range(3)) for tokens in (8, 256))
        assert 0 < short < long  # the fastest of three: a busy machine holds up any one of them
        assert engine.reusable(1, len(prompt)) == 0  # every sequence is empty now
        with pytest.raises(RuntimeError, match="llama_decode"):
            engine.bench(257, 0)
        engine.interrupt()
        assert engine.bench(256, 0) is None
        engine.rearm()
        assert engine.bench(0, 4)
        assert engine.decode([BatchToken(token, pos, 0, False) for pos, token in enumerate(prompt)])
    finally:
        engine.close()
