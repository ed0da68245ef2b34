"""What the worker counts, read as Prometheus reads it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rbee_remote.protocol import WorkerStatus, decode
from rbee_remote.worker.service import service
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Gate, Worker, echo, running

REMOTE = Path(__file__).parents[5] / "remote"


async def scrape(worker: Worker) -> dict[str, float]:
    """Every sample, by its name and labels as they are written."""
    response = await worker.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_a_worker_that_has_done_nothing(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), slots=3) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        found = await scrape(worker)
    assert found["rbee_worker_info ctx=64 device=cpu id=aaaaaaaaaaaaaaaa model=m"] == 1
    assert (found["rbee_slots"], found["rbee_slots_busy"], found["rbee_requests_queued"]) == (3, 0, 0)
    assert found["rbee_loading_progress_ratio"] == 1
    assert found["rbee_generated_tokens_total"] == 0
    assert found["rbee_time_to_first_token_seconds_count"] == 0
    assert found["process_resident_memory_bytes"] > 0


async def test_requests_are_counted_by_how_they_ended(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        for _ in range(2):
            await worker.generate("x" * 40)
        await worker.generate("abc", max_tokens=1)
        refused = {"prompt": "y" * 100, "stream": False}
        assert (await worker.client.post("/v1/completions", json=refused)).status_code == 400
        assert (await worker.client.post("/v1/embeddings", json={"input": ["ab", "c"]})).status_code == 200
        found = await scrape(worker)
    assert found["rbee_requests_total outcome=length"] == 3
    assert found["rbee_requests_total outcome=usage"] == 1
    assert found["rbee_prompt_tokens_total"] == 41 + 41 + 4
    assert found["rbee_prompt_tokens_reused_total"] == 40 + 1  # that begins a prompt
    assert found["rbee_generated_tokens_total"] == 23 + 23 + 1
    assert (found["rbee_embeddings_total"], found["rbee_embedding_tokens_total"]) == (2, 5)
    assert found["rbee_request_queue_seconds_count"] == 3
    assert found["rbee_time_to_first_token_seconds_count"] == 3
    assert found["rbee_time_per_output_token_seconds_count"] == 2  # one token has no time between
    buckets = [value for name, value in found.items() if name.startswith("rbee_request_queue_seconds_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 3


async def test_what_goes_on_is_measured(folder: Path) -> None:
    gate = Gate()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait))) as worker:
        asked = [asyncio.create_task(worker.generate(prompt)) for prompt in ("ab", "cd", "ef")]
        await worker.until(lambda status: status["queued"] == 2)
        found = await scrape(worker)
        gate.let(100)
        await asyncio.gather(*asked)
    assert (found["rbee_slots_busy"], found["rbee_requests_queued"]) == (1, 2)


async def test_openmetrics_where_it_is_asked_for(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        response = await worker.client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_a_worker_that_nobody_scrapes_does_not_load_the_library() -> None:
    code = "import sys, rbee_remote.worker.main; sys.exit('prometheus_client' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REMOTE, timeout=PATIENCE_S)


async def test_the_reference_lists_what_there_is(folder: Path) -> None:
    page = (REMOTE.parent / "docs/reference/worker-http.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(rbee_\w+)`", page.partition("## Metrics")[2]))
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        await worker.generate("x")
        found = {name.split(" ")[0] for name in await scrape(worker)}
    ours = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in found if name.startswith("rbee_")}
    assert listed == ours


async def test_a_hive_hears_how_far_a_request_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "WORK_INTERVAL_S", 0.01)
    gate, said = Gate(), deque[WorkerStatus]()
    reading, writing = os.pipe()

    async def until(condition: Callable[[WorkerStatus], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await lines.readline()
                said.append(decode(WorkerStatus, json.loads(line)))
                if condition(said[-1]):
                    return

    lines = asyncio.StreamReader()
    with os.fdopen(reading) as pipe:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), pipe
        )
        engine = ScriptedEngine(echo, before_step=gate.wait)
        async with running(folder, loads(engine), status_fd=writing) as worker:
            asked = asyncio.create_task(worker.generate("x" * 10, max_tokens=5))
            gate.let(3)
            await until(lambda status: status.work.generated > 0)
            assert (said[-1].work.prompt, said[-1].work.requests, said[-1].slots_free) == (11, 0, 0)
            gate.let(100)
            await asked
            await until(lambda status: status.work.requests == 1)
            assert (said[-1].work.generated, said[-1].work.prompt) == (5, 11)
            assert said[-1].work.first_token_s > 0
        transport.close()
    counted = [status.work.generated for status in said]
    assert counted == sorted(counted)
