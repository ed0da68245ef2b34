"""What a worker tells those who follow it, over its real socket, with a scripted engine."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import WorkerConfig, WorkerNews, WorkerOptions, WorkerState, decode
from rbee_remote.protocol.prompt_digest import BLOCK, prompt_digests
from rbee_remote.serving import sse
from rbee_remote.worker.service import news
from rbee_remote.worker.service.keep_alive import KeepAlive
from rbee_remote.worker.service.leases import Leases
from rbee_remote.worker.service.news import News
from rbee_remote.worker.service.state import State
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Gate, Worker, request, running

LONG: dict[str, Any] = {"ctx": 4096, "slots": 2, "keep_alive_s": 60.0}


def short(_: str) -> bytes:
    return b"ok"


class Follower:
    """Reads a worker's news, and keeps what it said last of each slot."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.held: dict[int, tuple[str, ...]] = {}

    async def next(self) -> WorkerNews:
        async for line in self._lines:
            if line.startswith("data: "):
                news = decode(WorkerNews, json.loads(line.removeprefix("data: ")))
                self.held |= {memory.slot: memory.digests for memory in news.slots}
                return news
        raise EOFError

    async def rest(self) -> WorkerNews:
        """The last of all news."""
        last: WorkerNews | None = None
        with contextlib.suppress(EOFError):
            while True:
                last = await self.next()
        assert last is not None
        return last

    async def until_held(self, *held: tuple[str, ...]) -> WorkerNews:
        """The news with which the slots hold that, in any order."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await self.next()
                if sorted(self.held.values()) == sorted(held):
                    return told


@contextlib.asynccontextmanager
async def following(worker: Worker) -> AsyncIterator[Follower]:
    async with worker.client.stream("GET", "/v1/news") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Follower(response.aiter_lines())


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content * BLOCK} for content in contents], **fields}


async def test_news_come_at_once_and_with_each_change(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(short, before_step=gate.wait, n_batch=1024)
    async with running(folder, loads(engine), **LONG) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        async with following(worker) as follower:
            first = await follower.next()
            assert (first.status.state, first.status.slots_free, first.typical_s) == (WorkerState.IDLE, 2, 0.0)
            assert [memory.slot for memory in first.slots] == [0, 1]
            body = chat("ab")
            asking = asyncio.create_task(worker.client.post("/v1/chat/completions", json=body))
            await gate.until_reached()
            busy = await follower.next()
            assert (busy.status.state, busy.status.slots_free, busy.slots) == (WorkerState.READY, 1, ())
            gate.let(1)  # the prompt
            told = await follower.until_held(prompt_digests(body), ())
            assert [memory.slot for memory in told.slots] == [0]
            gate.let(100)
            assert (await asking).status_code == 200
            while told.status.slots_free < 2:
                told = await follower.next()
            assert follower.held[0] == prompt_digests(body)
            assert told.typical_s > 0


async def test_each_api_tells_the_digests_that_its_body_has(folder: Path) -> None:
    settings = {**LONG, "slots": 1}
    async with running(folder, loads(ScriptedEngine(short)), **settings) as worker, following(worker) as follower:
        inference = request("", messages=[{"role": "user", "content": "a" * 3 * BLOCK}])
        del inference["prompt"]
        for path, body in (
            ("/v1/chat/completions", chat("b", "c", stream=True, temperature=0)),
            ("/v1/completions", {"prompt": "d" * 2 * BLOCK, "n": 2}),
            ("/v1/completions", {"prompt": [1] * 2 * BLOCK}),
        ):
            assert (await worker.client.post(path, json=body)).status_code == 200
            await follower.until_held(prompt_digests(body))
        assert (await worker.client.post("/v1/inference", json=inference)).status_code == 200
        while len(follower.held[0]) != 3:
            await follower.next()
        both = {"prompt": ["e" * 2 * BLOCK, "f" * 2 * BLOCK]}
        assert (await worker.client.post("/v1/completions", json=both)).status_code == 200
        await follower.until_held(())  # a body of two prompts is that of neither
        assert (await worker.client.post("/v1/chat/completions", json=chat("b"))).status_code == 200
        await follower.until_held(prompt_digests(chat("b")))
        assert (await worker.client.post("/v1/embeddings", json={"input": "x"})).status_code == 200
        await follower.until_held(())


async def test_a_large_body_has_its_digests_too(folder: Path) -> None:
    engine, settings = ScriptedEngine(short, n_batch=512), {**LONG, "ctx": 2**17}
    async with running(folder, loads(engine), **settings) as worker, following(worker) as follower:
        body = chat("a" * 400)
        assert (await worker.client.post("/v1/chat/completions", json=body)).status_code == 200
        await follower.until_held(prompt_digests(body), ())


async def test_the_engines_memory_lost_to_a_benchmark_is_told(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(short)), **LONG) as worker, following(worker) as follower:
        assert (await worker.client.post("/v1/chat/completions", json=chat("b"))).status_code == 200
        await follower.until_held(prompt_digests(chat("b")), ())
        body = {"prompt_tokens": 4, "generated_tokens": 1, "repetitions": 1}
        assert (await worker.client.post("/v1/admin/bench", json=body)).status_code == 200
        await follower.until_held((), ())


async def test_a_load_is_followed_and_the_end_ends_the_stream(folder: Path) -> None:
    ready = asyncio.Event()
    load = loads(ScriptedEngine(short), ready.is_set)
    async with running(folder, load, **LONG) as worker, following(worker) as follower:
        told = await follower.next()
        while told.status.progress < 0.5:
            told = await follower.next()
        assert told.status.state is WorkerState.LOADING
        ready.set()
        while told.status.state is not WorkerState.IDLE:
            told = await follower.next()
        await worker.client.post("/v1/admin/shutdown")
        assert (await follower.rest()).status.state is WorkerState.STOPPING


async def test_who_follows_does_not_keep_a_worker_alive(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(short)), **LONG) as worker, following(worker) as follower:
        await worker.generate("x", keep_alive_s=0.01)
        assert (await follower.rest()).status.state is WorkerState.STOPPING
        assert await asyncio.wait_for(worker.task, PATIENCE_S) == 0


async def test_who_follows_a_quiet_worker_hears_comments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.01)
    async with running(folder, loads(ScriptedEngine(short)), **LONG) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        async with worker.client.stream("GET", "/v1/news") as response:
            lines = [line async for line in first(response.aiter_lines(), 6) if line]
    assert [line.partition(":")[0] for line in lines] == ["event", "data", "", ""]


async def first(lines: AsyncIterator[str], count: int) -> AsyncIterator[str]:
    for _ in range(count):
        yield await anext(lines)


def a_state(slots: int) -> State:
    config = WorkerConfig("a" * 16, "m", "/m", "/s", WorkerOptions(), ctx=64, keep_alive_s=60.0, slots=slots)
    keep_alive = KeepAlive(Leases(60.0), stay=lambda: False, over=lambda: None, changed=lambda: None)
    return State(config, lambda: (0, 0), keep_alive, lambda _: None)


async def test_many_changes_at_once_are_one_event() -> None:
    told = News(a_state(4), 4, lambda: 0.0)
    followed = told.follow(PATIENCE_S)
    assert (await anext(followed)).status.slots == 4  # type: ignore[union-attr]
    for number in range(100):
        told.on_memory({number % 2: (f"{number:016x}",), 3: ()})
    following = await anext(followed)
    assert following is not None
    assert [(memory.slot, memory.digests) for memory in following.slots] == [(0, (f"{98:016x}",)), (1, (f"{99:016x}",))]
    waiting = asyncio.ensure_future(anext(followed))
    told.on_memory({0: (f"{98:016x}",)})  # nothing new
    await asyncio.sleep(2 * news.INTERVAL_S)
    assert not waiting.done()
    waiting.cancel()


async def test_what_slots_hold_fits_into_one_event_however_long_it_is() -> None:
    told = News(a_state(8), 8, lambda: 0.0)
    told.on_memory(dict.fromkeys(range(8), ("0" * 16,) * 8192))
    first = await anext(told.follow(PATIENCE_S))
    assert first is not None
    assert sum(len(memory.digests) for memory in first.slots) == news.MOST_TOLD
    assert len(json.dumps([memory.digests for memory in first.slots])) < 2**20 - 100_000
