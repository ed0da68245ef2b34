"""A whole worker in this process, with a scripted engine: real socket, real HTTP, real engine thread."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling, WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import Constraint, Engine, LoadEngine, Progress, Sampled
from rbee_remote.worker.main import serve
from rbee_remote.worker.requests import journals
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S

Events = list[tuple[int, str, dict[str, Any]]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, because a socket's path has 108 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-", dir="/tmp") as path:
        yield Path(path)


class Worker:
    """A running worker and its client."""

    def __init__(self, task: asyncio.Task[int], client: httpx.AsyncClient, socket: Path) -> None:
        self.task = task
        self.client = client
        self.socket = socket

    async def health(self) -> dict[str, Any]:
        status: dict[str, Any] = (await self.client.get("/v1/health")).json()
        return status

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first health that fulfils `condition`."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition(status := await self.health()):
                await asyncio.sleep(0.005)
        return status

    async def generate(self, prompt: str, **values: Any) -> Events:
        async with self.stream(prompt, **values) as events:
            return [event async for event in events]

    @contextlib.asynccontextmanager
    async def stream(self, prompt: str, **values: Any) -> AsyncIterator[AsyncIterator[tuple[int, str, dict[str, Any]]]]:
        async with self.client.stream("POST", "/v1/inference", json=request(prompt, **values)) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            yield parse(response)


async def parse(response: httpx.Response) -> AsyncIterator[tuple[int, str, dict[str, Any]]]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


def request(prompt: str, **values: Any) -> dict[str, Any]:
    return {"request_id": uuid.uuid4().hex, "prompt": prompt, **values}


def text(events: Events) -> str:
    return "".join(data["text"] for _, name, data in events if name == "token")


def last(events: Events) -> dict[str, Any]:
    return events[-1][2]


@contextlib.asynccontextmanager
async def running(
    folder: Path, load: LoadEngine, *, status_fd: int | None = None, **values: Any
) -> AsyncIterator[Worker]:
    """At the end it is told to stop, and must leave no socket."""
    settings = {"options": WorkerOptions(), "ctx": 64, "keep_alive_s": 60.0, "queue": 4, **values}
    config = WorkerConfig(id="a" * 16, model="m", path="/none", socket=str(folder / "w.sock"), **settings)
    task = asyncio.create_task(serve(config, load, status_fd))
    socket = Path(config.socket)
    async with asyncio.timeout(PATIENCE_S):
        while not socket.exists():
            await asyncio.sleep(0.005)
    transport = httpx.AsyncHTTPTransport(uds=config.socket)
    async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=PATIENCE_S) as client:
        try:
            yield Worker(task, client, socket)
        finally:
            if socket.exists():
                with contextlib.suppress(httpx.TransportError):  # it may be ending already
                    await client.post("/v1/admin/shutdown", json={"drain": False})
    await asyncio.wait_for(task, PATIENCE_S)
    assert list(folder.iterdir()) == []


class Gate:
    """Lets an engine's steps pass one by one."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)
        self.reached = threading.Semaphore(0)

    def wait(self, _: int = 0) -> None:
        self.reached.release()
        assert self._passes.acquire(timeout=PATIENCE_S)

    def let(self, steps: int) -> None:
        self._passes.release(steps)

    async def until_reached(self) -> None:
        """A step waits at the gate."""
        assert await asyncio.to_thread(self.reached.acquire, timeout=PATIENCE_S)


def echo(prompt: str) -> bytes:
    return prompt.encode()


async def test_an_answer_comes_as_numbered_events(folder: Path) -> None:
    engine = ScriptedEngine(lambda prompt: b"h\xc3\xa9!")
    async with running(folder, loads(engine)) as worker:
        events = await worker.generate("abc", sampling={"seed": 7})
    assert [number for number, _, _ in events] == [1, 2, 3, 4, 5, 6]
    assert [name for _, name, _ in events] == ["started", *["token"] * 4, "done"]
    assert events[0][2] == {"prompt_tokens": 4, "max_tokens": 60, "seed": 7, "reused_tokens": 0, "warnings": []}
    assert [(data["text"], data["tokens"]) for _, name, data in events if name == "token"] == [
        ("h", 1),
        ("", 2),
        ("é", 3),
        ("!", 4),
    ]
    assert last(events)["finish_reason"] == "stop"
    assert last(events)["usage"] == {"prompt_tokens": 4, "completion_tokens": 4}
    assert all(seconds >= 0 for seconds in last(events)["timings"].values())
    assert engine.closed


@pytest.mark.parametrize(
    ("values", "expected", "reason"),
    [
        ({}, "one two three", "stop"),
        ({"max_tokens": 5}, "one t", "length"),
        ({"stop": ["two"]}, "one ", "stop"),
        ({"stop": ["threeee"]}, "one two three", "stop"),
        ({"stop": ["two t"], "max_tokens": 7}, "one two", "length"),
    ],
)
async def test_where_an_answer_ends(folder: Path, values: dict[str, Any], expected: str, reason: str) -> None:
    async with running(folder, loads(ScriptedEngine(lambda _: b"one two three"))) as worker:
        events = await worker.generate("x", **values)
    assert text(events) == expected
    assert last(events)["finish_reason"] == reason


async def test_many_requests_share_two_slots(folder: Path) -> None:
    prompts = [f"{number} " * (number + 1) for number in range(6)]
    async with running(folder, loads(ScriptedEngine(echo)), slots=2) as worker:
        answers = await asyncio.gather(*(worker.generate(prompt) for prompt in prompts))
        status = await worker.until(lambda status: status["state"] == "idle")
    assert [text(events) for events in answers] == prompts
    assert (status["slots_free"], status["queued"]) == (2, 0)


async def test_requests_wait_for_the_model(folder: Path) -> None:
    loaded = threading.Event()
    async with running(folder, loads(ScriptedEngine(echo), lambda: loaded.wait(0.01))) as worker:
        status = await worker.until(lambda status: status["progress"] == 0.5)
        assert status["state"] == "loading"
        assert (await worker.client.get("/v1/ready")).status_code == 503
        answers = [asyncio.create_task(worker.generate(prompt)) for prompt in ("ab", "cd" * 40)]
        await worker.until(lambda status: status["slots_free"] == 0 and status["queued"] == 1)
        loaded.set()
        assert text(await answers[0]) == "ab"
        assert (await answers[1])[-1][1:] == ("error", too_long(81, 64).encode())
        assert (await worker.client.get("/v1/ready")).status_code == 200


def too_long(tokens: int, ctx: int) -> RemoteError:
    return RemoteError(
        ErrorCode.USAGE,
        f"the prompt is too long: {tokens} tokens, and the context holds {ctx}",
        hint="shorten the prompt, or load the model with a larger --ctx",
        details={"prompt_tokens": tokens, "ctx": ctx},
    )


async def test_loading_progress_is_a_stream_until_the_model_is_there(folder: Path) -> None:
    loaded = threading.Event()
    states = []
    async with (
        running(folder, loads(ScriptedEngine(echo), lambda: loaded.wait(0.01))) as worker,
        worker.client.stream("GET", "/v1/loading/progress") as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                status = json.loads(line[6:])
                states.append((status["state"], status["progress"]))
                loaded.set()
    assert states[0][0] == "loading"
    assert states[-1] == ("idle", 1.0)


async def test_a_prompt_longer_than_the_context_is_refused_at_once(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        response = await worker.client.post("/v1/inference", json=request("x" * 80))
    assert response.status_code == 400
    assert response.json() == too_long(81, 64).encode()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "GenerateRequest: expected an object"),
        (b'{"request_id": 1}', 400, "GenerateRequest.request_id: expected str, got int"),
        (json.dumps(request("a", max_tokens=True)).encode(), 400, "max_tokens: expected int"),
        (json.dumps(request("a", sampling={"temperature": 9})).encode(), 400, "temperature must be from 0 to 5, got 9"),
        (json.dumps(request("a", sampling={"top_p": float("nan")})).encode(), 400, "top_p: nan is not a number"),
        (b"x" * (8 * 2**20 + 1), 413, "larger than"),
    ],
    ids=["empty", "brace", "no text", "deep", "list", "number as id", "bool", "too high", "nan", "too large"],
)
async def test_bad_bodies_are_refused(folder: Path, body: bytes, status: int, words: str) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        response = await worker.client.post("/v1/inference", content=body)
        assert text(await worker.generate("still serves")) == "still serves"
    assert response.status_code == status
    assert response.json()["error"]["code"] == "USAGE"
    assert words in response.json()["error"]["message"]


async def test_unknown_paths_and_methods_are_errors_too(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        responses = [await worker.client.get("/nothing"), await worker.client.get("/v1/inference")]
    assert [response.status_code for response in responses] == [404, 405]
    assert all("code" in response.json()["error"] for response in responses)


async def test_a_request_for_another_worker_is_gone(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        answers = [
            await worker.client.get("/v1/health", headers={"X-Rbee-Worker": name}) for name in ("a" * 16, "b" * 16)
        ]
    assert [answer.status_code for answer in answers] == [200, 410]
    assert answers[1].json()["error"]["code"] == "WORKER_GONE"


async def test_a_full_queue_is_busy_and_frees_up(folder: Path) -> None:
    gate = Gate()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait)), queue=1) as worker:
        first = asyncio.create_task(worker.generate("one"))
        await gate.until_reached()
        second = asyncio.create_task(worker.generate("two"))
        status = await worker.until(lambda status: status["queued"] == 1)
        assert status["state"] == "busy"
        refused = await worker.client.post("/v1/inference", json=request("three"))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "ALL_SLOTS_BUSY"
        gate.let(100)
        assert [text(await first), text(await second)] == ["one", "two"]
        assert text(await worker.generate("three")) == "three"


async def test_an_id_that_is_in_use_is_refused(folder: Path) -> None:
    gate = Gate()
    body = request("one")
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait))) as worker:
        first = asyncio.create_task(worker.client.post("/v1/inference", json=body))
        await gate.until_reached()
        second = await worker.client.post("/v1/inference", json=body | {"prompt": "two"})
        gate.let(100)
        assert (await first).status_code == 200
    assert second.status_code == 400
    assert "in use" in second.json()["error"]["message"]


@pytest.mark.parametrize("can_forget", [True, False])
async def test_cancel_ends_a_running_request_within_a_step_and_spares_the_others(
    folder: Path, can_forget: bool
) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait, can_forget=can_forget)
    async with running(folder, loads(engine), slots=2, ctx=4096) as worker:
        spared = asyncio.create_task(worker.generate("spare me", sampling={"seed": 1}))
        await gate.until_reached()
        gate.let(3)
        canceled = request("x" * 2000)
        answer = asyncio.create_task(worker.client.post("/v1/inference", json=canceled))
        await worker.until(lambda status: status["slots_free"] == 0)
        steps = engine.steps
        response = await worker.client.delete(f"/v1/requests/{canceled['request_id']}")
        assert response.status_code == 202
        gate.let(1000)
        lines = (await answer).text
        assert '"finish_reason": "canceled"' in lines
        assert "event: token" not in lines
        assert text(await spared) == "spare me"
        assert engine.steps - steps < 40, "the 2,000 tokens of the cancelled prompt were not computed"
        again = await worker.client.delete(f"/v1/requests/{canceled['request_id']}")
        assert again.status_code == 404


async def test_cancel_ends_a_waiting_request_while_the_engine_is_in_a_step(folder: Path) -> None:
    gate = Gate()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait))) as worker:
        first = asyncio.create_task(worker.generate("one"))
        await gate.until_reached()
        waiting = request("two")
        second = asyncio.create_task(worker.client.post("/v1/inference", json=waiting))
        await worker.until(lambda status: status["queued"] == 1)
        assert (await worker.client.delete(f"/v1/requests/{waiting['request_id']}")).status_code == 202
        assert '"finish_reason": "canceled"' in (await second).text
        gate.let(100)
        assert text(await first) == "one"


async def test_a_deadline_ends_a_request_that_runs_and_one_that_waits(folder: Path) -> None:
    """The engine would need 20 s for the answer, the one in front of the other needs its time from both."""
    engine = ScriptedEngine(lambda _: b"x" * 4000, before_step=lambda _: time.sleep(0.005))
    async with running(folder, loads(engine), ctx=8192) as worker:
        runs = asyncio.create_task(worker.generate("one", timeout_s=3.0))
        await worker.until(lambda status: status["state"] == "busy")
        waits = await worker.generate("two", timeout_s=0.05)
        ran = await runs
    assert [name for _, name, _ in waits] == ["done"]
    assert last(waits)["finish_reason"] == "deadline"
    assert last(waits)["usage"] == {"prompt_tokens": 0, "completion_tokens": 0}
    assert last(ran)["finish_reason"] == "deadline"
    assert 0 < last(ran)["usage"]["completion_tokens"] == len(text(ran)) < 4000


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_client_that_leaves_while_it_waits_is_dropped(folder: Path) -> None:
    gate = Gate()
    asked: list[str] = []

    def answer(prompt: str) -> bytes:
        asked.append(prompt)
        return b"ok"

    async with running(folder, loads(ScriptedEngine(answer, before_step=gate.wait))) as worker:
        first = asyncio.create_task(worker.generate("one"))
        await gate.until_reached()
        second = asyncio.create_task(worker.generate("two"))
        await worker.until(lambda status: status["queued"] == 1)
        await cancel(second)
        await worker.until(lambda status: status["queued"] == 0)
        gate.let(100)
        assert text(await first) == "ok"
    assert asked == ["one"]


async def test_a_dropped_connection_does_not_end_a_running_request(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine)) as worker:
        first = asyncio.create_task(worker.generate("abcdef"))
        await gate.until_reached()
        await cancel(first)
        gate.let(100)
        await worker.until(lambda status: status["state"] == "idle")
    assert engine.steps == 7, "the prompt's step and one for each letter"


async def test_a_request_whose_client_does_not_come_back_frees_its_slot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "ORPHAN_S", 0.05)
    gate = Gate()
    engine = ScriptedEngine(lambda _: b"x" * 60, before_step=gate.wait)
    async with running(folder, loads(engine)) as worker:
        first = asyncio.create_task(worker.generate("abc"))
        await gate.until_reached()
        await cancel(first)
        await asyncio.sleep(0.2)
        gate.let(2)
        await worker.until(lambda status: status["state"] == "idle")
        gate.let(100)
    assert engine.steps < 10


async def test_a_failing_engine_fails_its_requests_and_ends_the_worker(folder: Path) -> None:
    gate = Gate()

    def explode(step: int) -> None:
        gate.wait()
        if step == 3:
            raise RuntimeError("the GPU fell off the bus")

    read_end, write_end = os.pipe()
    engine = ScriptedEngine(echo, before_step=explode)
    async with running(folder, loads(engine), status_fd=write_end, slots=2) as worker:
        requests = [asyncio.create_task(worker.generate(prompt)) for prompt in ("abcdef", "ghijkl")]
        await worker.until(lambda status: status["slots_free"] == 0)
        gate.let(3)
        answers = await asyncio.gather(*requests)
        assert await worker.task == 1
    for events in answers:
        _, name, data = events[-1]
        assert name == "error"
        assert data["error"]["code"] == "WORKER_CRASHED"
        assert "fell off the bus" in data["error"]["message"]
    assert engine.closed
    final = status_lines(read_end)[-1]
    assert (final["state"], final["error"]["code"]) == ("failed", "WORKER_CRASHED")


class PickyEngine(ScriptedEngine):
    """Refuses what says so, as llama.cpp refuses a grammar: at its start, or after three tokens."""

    def start(
        self, seq: int, sampling: Sampling, seed: int, prompt: Sequence[int], constraint: Constraint | None = None
    ) -> None:
        if sampling.grammar == 'root ::= "start"':
            raise RemoteError(ErrorCode.USAGE, "not at the start")
        self.left = 3 if sampling.grammar else -1
        super().start(seq, sampling, seed, prompt, constraint)

    def sample(self, seq: int, row: int) -> Sampled:
        if self.left == 0:
            raise RemoteError(ErrorCode.USAGE, "no further")
        self.left -= 1
        return super().sample(seq, row)


@pytest.mark.parametrize(
    ("when", "said", "before"), [("start", "not at the start", ""), ("middle", "no further", "one")]
)
async def test_a_request_that_the_engine_refuses_frees_its_slot(
    folder: Path, when: str, said: str, before: str
) -> None:
    async with running(folder, loads(PickyEngine(lambda _: b"one two"))) as worker:
        refused = await worker.generate("x", sampling={"grammar": f'root ::= "{when}"'})
        answered = await worker.generate("y")
        status = await worker.until(lambda status: status["state"] == "idle")
    assert (last(refused)["error"]["code"], last(refused)["error"]["message"]) == ("USAGE", said)
    assert text(refused) == before
    assert text(answered) == "one two"
    assert status["slots_free"] == 1


async def test_what_of_a_schema_is_not_enforced_is_told_when_the_answer_starts(folder: Path) -> None:
    schema = {"type": "array", "uniqueItems": True}
    engine = ScriptedEngine(lambda _: b"[]")
    async with running(folder, loads(engine)) as worker:
        events = await worker.generate("x", sampling={"json_schema": schema, "strict": False})
        body = request("y", sampling={"json_schema": schema})
        refused = await worker.client.post("/v1/inference", json=body)
    name, started = events[0][1:]
    assert name == "started"
    (warning,) = started["warnings"]
    assert warning.startswith("json_schema: #: uniqueItems is not enforced")
    assert text(events) == "[]"
    assert engine.constraints[0] is not None
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "USAGE"
    assert error["message"].startswith("json_schema cannot be used: #: uniqueItems is not enforced")


async def test_a_failed_load_is_told_to_hive_and_clients(folder: Path) -> None:
    may_fail = threading.Event()

    def load(_: WorkerConfig, progress: Progress) -> Engine:
        assert may_fail.wait(PATIENCE_S)
        raise RemoteError(ErrorCode.MODEL_INVALID, "not a GGUF file: /none")

    read_end, write_end = os.pipe()
    async with running(folder, load, status_fd=write_end) as worker:
        answer = asyncio.create_task(worker.generate("abc"))
        await worker.until(lambda status: status["slots_free"] == 0)
        may_fail.set()
        assert (await answer)[-1][1] == "error"
        assert await worker.task == 1
    final = status_lines(read_end)[-1]
    assert (final["state"], final["error"]["message"]) == ("failed", "not a GGUF file: /none")


def status_lines(read_end: int) -> list[dict[str, Any]]:
    """All lines of a status pipe whose writer is gone."""
    with os.fdopen(read_end) as lines:
        return [json.loads(line) for line in lines]


async def test_the_hive_sees_each_state(folder: Path) -> None:
    read_end, write_end = os.pipe()
    async with running(folder, loads(ScriptedEngine(echo)), status_fd=write_end) as worker:
        await worker.generate("a")
        await worker.until(lambda status: status["state"] == "idle")
    states = [line["state"] for line in status_lines(read_end)]
    assert [state for state, before in zip(states, [None, *states], strict=False) if state != before] == [
        "loading",
        "idle",
        "busy",
        "idle",
        "stopping",
    ]


async def ended(worker: Worker) -> int:
    return await asyncio.wait_for(asyncio.shield(worker.task), PATIENCE_S)


async def test_the_worker_ends_after_its_keep_alive(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keep_alive_s=0.2) as worker:
        assert text(await worker.generate("abc")) == "abc"
        assert await ended(worker) == 0


async def test_a_request_can_change_the_keep_alive(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keep_alive_s=-1.0) as worker:
        await worker.generate("a")
        assert (await worker.health())["keep_alive_s"] == -1.0
        await worker.generate("b", keep_alive_s=0.1)
        assert await ended(worker) == 0


async def test_keep_alive_zero_still_answers_the_first_request(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keep_alive_s=0.0) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        assert text(await worker.generate("abc")) == "abc"
        assert await ended(worker) == 0


async def test_a_hive_that_dies_lets_running_requests_finish(folder: Path) -> None:
    gate = Gate()
    read_end, write_end = os.pipe()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait)), status_fd=write_end) as worker:
        answer = asyncio.create_task(worker.generate("abc"))
        await gate.until_reached()
        os.close(read_end)
        await worker.until(lambda status: status["state"] == "stopping")
        refused = await worker.client.post("/v1/inference", json=request("late"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "WORKER_GONE")
        gate.let(100)
        assert text(await answer) == "abc"
        assert await ended(worker) == 0


@pytest.mark.parametrize(
    ("body", "expected"), [({}, "stop"), ({"drain": True}, "stop"), ({"drain": False}, "canceled")]
)
async def test_shutdown_drains_unless_told_otherwise(folder: Path, body: dict[str, Any], expected: str) -> None:
    gate = Gate()
    async with running(folder, loads(ScriptedEngine(echo, before_step=gate.wait))) as worker:
        answer = asyncio.create_task(worker.generate("abc"))
        await gate.until_reached()
        assert (await worker.client.post("/v1/admin/shutdown", json=body)).status_code == 202
        gate.let(100)
        assert last(await answer)["finish_reason"] == expected
        assert await ended(worker) == 0


async def test_a_load_is_stopped(folder: Path) -> None:
    loading = loads(ScriptedEngine(echo), lambda: threading.Event().wait(0.01))
    async with running(folder, loading) as worker:
        waiting = asyncio.create_task(worker.generate("abc"))
        await worker.until(lambda status: status["slots_free"] == 0)
        await worker.client.post("/v1/admin/shutdown", json={"drain": False})
        assert last(await waiting)["finish_reason"] == "canceled"
        assert await ended(worker) == 0


async def test_the_socket_is_private_and_replaces_a_stale_one(folder: Path) -> None:
    (folder / "w.sock").touch()
    async with running(folder, loads(ScriptedEngine(echo))) as worker:
        await until_socket(worker.socket)
        assert worker.socket.stat().st_mode & 0o777 == 0o600


async def until_socket(path: Path) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not path.is_socket():
            await asyncio.sleep(0.005)
