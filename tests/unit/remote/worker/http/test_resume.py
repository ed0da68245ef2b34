"""A client that lost its connection comes back: for the rest of the events, or with the same request again."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rbee_remote.protocol import Done, ErrorCode, GenerateRequest, RemoteError, Usage, WorkerOptions, WorkerTimings
from rbee_remote.worker.engine.interface import Engine
from rbee_remote.worker.requests import journals
from rbee_remote.worker.requests.journal import Journal
from tests.doubles import virtual_time
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import (
    Events,
    Gate,
    Worker,
    cancel,
    echo,
    ended,
    folder,
    last,
    parse,
    request,
    running,
    text,
)

__all__ = ["folder"]  # the fixture


def slow(answer: bytes = b"x" * 400, step_s: float = 0.002) -> ScriptedEngine:
    return ScriptedEngine(lambda _: answer, before_step=lambda _: time.sleep(step_s))


async def follow(worker: Worker, request_id: str, *, count: int | None = None, **values: Any) -> Events:
    """Events of a request that is there already; the first `count` of them, then the connection is dropped."""
    events: Events = []
    async with worker.client.stream("GET", f"/v1/requests/{request_id}/events", **values) as response:
        assert response.status_code == 200, await response.aread()
        async for event in parse(response):
            events.append(event)
            if len(events) == count:
                break
    return events


async def begin(worker: Worker, body: dict[str, Any], count: int) -> Events:
    """The first `count` events of a new request, then the connection is dropped."""
    events: Events = []
    async with worker.client.stream("POST", "/v1/inference", json=body) as response:
        async for event in parse(response):
            events.append(event)
            if len(events) == count:
                break
    return events


def numbers(events: Events) -> list[int]:
    return [number for number, _, _ in events]


async def test_a_stream_goes_on_where_it_was_dropped(folder: Path) -> None:
    body = request("abc")
    async with running(folder, loads(slow()), ctx=4096) as worker:
        first = await begin(worker, body, 10)
        second = await follow(worker, body["request_id"], count=20, headers={"Last-Event-ID": "10"})
        third = await follow(worker, body["request_id"], params={"after": "30"})
    assert numbers(first + second + third) == list(range(1, 403))
    assert text(first + second + third) == "x" * 400
    assert last(third)["finish_reason"] == "stop"


async def test_several_follow_one_request(folder: Path) -> None:
    body = request("abc")
    async with running(folder, loads(slow()), ctx=4096) as worker:
        await begin(worker, body, 5)
        streams = await asyncio.gather(*(follow(worker, body["request_id"]) for _ in range(3)))
    assert streams[0] == streams[1] == streams[2]
    assert text(streams[0]) == "x" * 400


async def test_a_finished_request_is_there_for_a_while(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, brief = request("abc"), request("abc")
    path = f"/v1/requests/{body['request_id']}/events"
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        whole = (await worker.client.post("/v1/inference", json=body)).text
        assert (await worker.client.get(path)).text == whole
        monkeypatch.setattr(journals, "KEEP_S", 0.1)
        await worker.client.post("/v1/inference", json=brief)
        async with asyncio.timeout(PATIENCE_S):
            while (gone := await worker.client.get(path.replace(body["request_id"], brief["request_id"]))).is_success:
                await asyncio.sleep(0.02)
    assert gone.status_code == 404
    assert gone.json()["error"]["code"] == "REQUEST_GONE"


@pytest.mark.parametrize("said", ["-1", "x", "1.5", "99999", "10" * 30])
async def test_an_event_that_never_was_cannot_be_the_last_one(folder: Path, said: str) -> None:
    body = request("abc")
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        await worker.client.post("/v1/inference", json=body)
        path = f"/v1/requests/{body['request_id']}/events"
        refused = await worker.client.get(path, headers={"Last-Event-ID": said})
    assert refused.status_code == 400
    assert "from 0 to 5" in refused.json()["error"]["message"]


async def test_a_request_that_is_sent_twice_is_computed_once(folder: Path) -> None:
    gate = Gate()
    body = request("abc", timeout_s=30.0)
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), options=WorkerOptions(slots=2)) as worker:
        first = asyncio.create_task(worker.client.post("/v1/inference", json=body))
        await gate.until_reached()
        second = asyncio.create_task(worker.client.post("/v1/inference", json=body | {"timeout_s": 29.0}))
        gate.let(100)
        assert (await first).text == (await second).text
        third = await worker.client.post("/v1/inference", json=body)
    assert third.text == (await first).text
    assert engine.steps == 4, "the prompt's step and one for each letter"


async def test_both_of_two_equal_requests_learn_that_it_is_refused(folder: Path) -> None:
    body = request("x" * 80)
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        answers = await asyncio.gather(*(worker.client.post("/v1/inference", json=body) for _ in range(2)))
        again = await worker.client.post("/v1/inference", json=body)
    assert all("the context holds 64" in answer.text for answer in answers)
    assert again.status_code == 400


async def test_who_left_the_queue_may_come_again(folder: Path) -> None:
    gate = Gate()
    asked: list[str] = []

    def answer(prompt: str) -> bytes:
        asked.append(prompt)
        return b"ok"

    body = request("two")
    async with running(folder, loads(ScriptedEngine(answer, before_step=gate.wait))) as worker:
        first = asyncio.create_task(worker.generate("one"))
        await gate.until_reached()
        left = asyncio.create_task(worker.client.post("/v1/inference", json=body))
        await worker.until(lambda status: status["queued"] == 1)
        await cancel(left)
        await worker.until(lambda status: status["queued"] == 0)
        again = asyncio.create_task(worker.client.post("/v1/inference", json=body))
        await worker.until(lambda status: status["queued"] == 1)
        gate.let(100)
        assert text(await first) == "ok"
        assert '"finish_reason": "stop"' in (await again).text
    assert asked == ["one", "two"]


async def test_a_second_drop_has_a_patience_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = request("abc")
    async with running(folder, loads(slow(b"x" * 8000)), ctx=16384) as worker:
        await begin(worker, body, 5)
        monkeypatch.setattr(journals, "ORPHAN_S", 0.1)
        await follow(worker, body["request_id"], count=5)
        await worker.until(lambda status: status["slots_free"] == 1)
        events = await follow(worker, body["request_id"])
    assert last(events)["finish_reason"] == "canceled"


def test_followed_again_the_clock_of_the_first_drop_does_not_end_a_request() -> None:
    async def main() -> list[float]:
        def end(request_id: str, reason: str, *, only_waiting: bool = False) -> bool:
            if not only_waiting:
                assert (request_id, reason) == ("0" * 32, "canceled")
                ended_at.append(loop.time() - began)
            return not only_waiting

        loop, ended_at = asyncio.get_running_loop(), list[float]()
        began, kept = loop.time(), journals.Journals(end)
        kept.open(GenerateRequest("0" * 32, prompt="x"))
        with kept.following("0" * 32):
            pass
        await asyncio.sleep(0.6 * journals.ORPHAN_S)
        with kept.following("0" * 32):
            await asyncio.sleep(0.1 * journals.ORPHAN_S)
        await asyncio.sleep(2 * journals.ORPHAN_S)
        return ended_at

    assert virtual_time.run(main()) == [pytest.approx(1.7 * journals.ORPHAN_S)]


async def test_a_worker_without_keep_alive_stays_for_an_unread_answer(folder: Path) -> None:
    """The answer is far longer than the socket's buffers, so that its writer is sure to notice that nobody reads."""
    body = request("abc", max_tokens=3000, sampling={"logprobs": 0})
    async with running(folder, loads(slow(b"x" * 3000, 0.0)), ctx=4096, keep_alive_s=0.0) as worker:
        await begin(worker, body, 2)
        await worker.until(lambda status: status["state"] == "idle")
        assert len(text(await follow(worker, body["request_id"]))) == 3000
        assert await ended(worker) == 0


async def test_an_answer_that_nobody_comes_back_for_keeps_a_worker_for_its_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the keeper was killed."""
    monkeypatch.setattr(journals, "KEEP_S", 0.5)
    body = request("abc", max_tokens=3000, sampling={"logprobs": 0})
    async with running(folder, loads(slow(b"x" * 3000, 0.0)), ctx=4096, keep_alive_s=0.0) as worker:
        await begin(worker, body, 2)
        assert await ended(worker) == 0


async def test_a_request_is_ended_while_its_prompt_is_made(folder: Path) -> None:
    """By its cancel, by its deadline, and by the client that leaves: nothing of it reaches the engine."""
    made, entered = threading.Event(), threading.Semaphore(0)

    class Slow(ScriptedEngine):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            if text.startswith("slow"):
                entered.release()
                assert made.wait(PATIENCE_S)
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    engine: Engine = Slow(echo)
    async with running(folder, loads(engine)) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        body, late = request("slow a"), request("slow b", timeout_s=0.05)
        canceled = asyncio.create_task(worker.client.post("/v1/inference", json=body))
        assert await asyncio.to_thread(entered.acquire, timeout=PATIENCE_S)
        overdue = asyncio.create_task(worker.client.post("/v1/inference", json=late))
        async with asyncio.timeout(PATIENCE_S):
            while (await worker.client.get(f"/v1/requests/{late['request_id']}/events")).status_code == 404:
                await asyncio.sleep(0.01)
        assert (await worker.client.delete(f"/v1/requests/{body['request_id']}")).status_code == 202
        made.set()
        assert '"finish_reason": "canceled"' in (await canceled).text
        assert '"finish_reason": "deadline"' in (await overdue).text
        assert (await worker.health())["slots_free"] == 1
    assert isinstance(engine, Slow)
    assert engine.steps == 0


async def test_a_deadline_ends_a_long_prompt(folder: Path) -> None:
    """The 4,000 tokens of the prompt, 16 a step, would take 5 s."""
    engine = ScriptedEngine(echo, before_step=lambda _: time.sleep(0.02))
    async with running(folder, loads(engine), ctx=8192) as worker:
        events = await worker.generate("x" * 4000, timeout_s=0.2)
    assert last(events)["finish_reason"] == "deadline"
    assert "token" not in [name for _, name, _ in events]
    assert engine.steps < 250


async def test_who_finds_no_room_is_told_when_to_come_again(folder: Path) -> None:
    gate = Gate()

    def pace(step: int) -> None:
        time.sleep(1.2) if step == 1 else gate.wait()

    async with running(folder, loads(ScriptedEngine(lambda _: b"", before_step=pace)), queue=0) as worker:
        await worker.generate("one")
        second = asyncio.create_task(worker.generate("two"))
        await gate.until_reached()
        refused = await worker.client.post("/v1/inference", json=request("three"))
        gate.let(100)
        await second
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.json()["error"]["details"]["retry_after_s"] == 2


# --- what is kept -------------------------------------------------------------------------------------------------


@pytest.fixture
async def kept() -> journals.Journals:
    def nothing_runs(request_id: str, reason: str, *, only_waiting: bool = False) -> bool:
        raise AssertionError("all requests have ended")

    return journals.Journals(nothing_runs)


def finish(kept: journals.Journals, number: int, error: str = "") -> Journal:
    journal = kept.open(GenerateRequest(f"{number:032x}", prompt="x"))
    done = Done("stop", Usage(1, 1), WorkerTimings(0.0, 0.0, 0.0))
    journal.append(RemoteError(ErrorCode.INTERNAL, error) if error else done)
    return journal


def known(kept: journals.Journals, numbers: range) -> list[int]:
    def is_known(number: int) -> bool:
        try:
            kept.find(f"{number:032x}")
        except RemoteError as error:
            assert error.code is ErrorCode.REQUEST_GONE
            return False
        return True

    return [number for number in numbers if is_known(number)]


@pytest.mark.parametrize(
    ("bound", "value"), [("KEEP_REQUESTS", 3), ("KEEP_BYTES", 3 * 200)], ids=["by number", "by bytes"]
)
async def test_what_is_kept_is_bounded(
    kept: journals.Journals, monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(journals, bound, value)
    still_open = kept.open(GenerateRequest("f" * 32, prompt="x"))
    for number in range(10):
        finish(kept, number)
    assert known(kept, range(10)) == [7, 8, 9]
    assert kept.find("f" * 32) is still_open


async def test_one_answer_is_kept_however_long_it_is(kept: journals.Journals, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "KEEP_BYTES", 1)
    finish(kept, 0)
    finish(kept, 1)
    assert known(kept, range(2)) == [1]


async def test_a_journal_that_was_forgotten_is_not_found_again_by_its_end(kept: journals.Journals) -> None:
    first = kept.open(GenerateRequest("0" * 32, prompt="x"))
    kept.forget("0" * 32, first)
    second = kept.open(GenerateRequest("0" * 32, prompt="x"))
    first.append(RemoteError(ErrorCode.WORKER_GONE, "the worker ended"))
    kept.forget("0" * 32, first)
    assert kept.find("0" * 32) is second
