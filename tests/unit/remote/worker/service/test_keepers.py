"""A worker and its keepers: who holds it for how long, when one may end it, and what the hive is told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rbee_remote.protocol import HEADER_KEEPER, HEADER_WHO, Lease, Served, WorkerStatus, decode
from tests.doubles.engine import ScriptedEngine, loads
from tests.patience import PATIENCE_S
from tests.unit.remote.worker.http.test_app import Gate, Worker, echo, request, running

DAY_S = 86400.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)


async def infer(worker: Worker, keeper: str, **values: Any) -> str:
    """The request's id; it is over."""
    body = request("hi", **values)
    response = await worker.client.post("/v1/inference", json=body, headers={HEADER_KEEPER: keeper})
    assert response.status_code == 200, response.text
    request_id: str = body["request_id"]
    return request_id


async def leases(worker: Worker) -> dict[str, float | None]:
    status = decode(WorkerStatus, await worker.health())
    return {lease.keeper: lease.left_s for lease in status.leases}


async def end_if_idle(worker: Worker, keeper: str, only_idle_s: float = 0.0) -> httpx.Response:
    body = {"only_idle_s": only_idle_s}
    return await worker.client.post("/v1/admin/shutdown", json=body, headers={HEADER_KEEPER: keeper})


async def test_the_one_that_it_was_started_for_has_the_first_lease(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keeper="a", keep_alive_s=300.0) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        assert (await leases(worker))["a"] == pytest.approx(300, abs=10)


async def test_a_keep_alive_of_0_of_one_keeper_leaves_another_its_worker(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keeper="a", keep_alive_s=300.0) as worker:
        await infer(worker, "a")
        await infer(worker, "b", keep_alive_s=0.0)
        await worker.until(lambda status: [lease["keeper"] for lease in status["leases"]] == ["a"])
        assert not worker.task.done()
        await infer(worker, "a", keep_alive_s=0.0)
        assert await asyncio.wait_for(worker.task, PATIENCE_S) == 0


async def test_fifty_keepers_at_once_each_have_their_lease(folder: Path) -> None:
    values: dict[str, Any] = {"slots": 4, "queue": 64, "keeper": "k0", "keep_alive_s": 1.0}
    async with running(folder, loads(ScriptedEngine(echo)), **values) as worker:
        given = {f"k{number}": 100.0 * (number + 1) for number in range(50)}
        await asyncio.gather(*(infer(worker, keeper, keep_alive_s=seconds) for keeper, seconds in given.items()))
        told = await leases(worker)
        assert told == {keeper: pytest.approx(seconds, abs=20) for keeper, seconds in given.items()}
        assert (await worker.health())["keep_alive_s"] == 5000.0


async def test_who_reads_an_answer_again_uses_the_worker(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keeper="a", keep_alive_s=300.0) as worker:
        request_id = await infer(worker, "a")
        again = await worker.client.get(f"/v1/requests/{request_id}/events", headers={HEADER_KEEPER: "b"})
        assert again.status_code == 200
        assert set(await leases(worker)) == {"a", "b"}


async def test_clients_that_do_not_say_share_a_lease(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keeper="a", keep_alive_s=300.0) as worker:
        body = {"messages": [{"role": "user", "content": "hi"}]}
        assert (await worker.client.post("/v1/chat/completions", json=body)).status_code == 200
        await worker.client.post("/v1/embeddings", json={"input": "hi"}, headers={HEADER_KEEPER: "c"})
        assert set(await leases(worker)) == {"", "a", "c"}


async def test_an_announced_keeper_is_waited_for(folder: Path) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), keep_alive_s=0.0) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        granted = await worker.client.post("/v1/admin/lease", json={"keeper": "b", "keep_alive_s": 600.0})
        assert granted.status_code == 202
        assert (await leases(worker))["b"] == pytest.approx(600, abs=10)


async def test_only_an_idle_worker_is_ended_on_condition(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), keeper="a", keep_alive_s=300.0) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        too_early = await end_if_idle(worker, "a", DAY_S)
        assert (too_early.status_code, too_early.json()["error"]["code"]) == (503, "IN_USE")
        assert "idle for 0 s only" in too_early.json()["error"]["details"]["reason"]
        asking = asyncio.create_task(infer(worker, "a"))
        await gate.until_reached()
        busy = await end_if_idle(worker, "a")
        assert (busy.status_code, busy.json()["error"]["details"]["reason"]) == (503, "a request is open")
        gate.let(100)
        await asking
        others = await end_if_idle(worker, "b")
        assert "another keeper holds it for" in others.json()["error"]["message"]
        assert (await end_if_idle(worker, "a")).status_code == 202
        assert await asyncio.wait_for(worker.task, PATIENCE_S) == 0


async def test_the_hive_knows_how_long_an_idle_worker_is_kept(folder: Path, pipe: tuple[int, int]) -> None:
    values: dict[str, Any] = {"status_fd": pipe[1], "keeper": "a", "keep_alive_s": 300.0}
    async with running(folder, loads(ScriptedEngine(echo)), **values) as worker:
        await infer(worker, "a", keep_alive_s=60.0)
        await worker.until(lambda status: status["leases"][0]["left_s"] is not None)
    with os.fdopen(os.dup(pipe[0])) as lines:
        statuses = [decode(WorkerStatus, json.loads(line)) for line in lines]
    idle = [status for status in statuses if status.state.value == "idle"]
    assert idle[-1].leases == (Lease("a", pytest.approx(60, abs=5)),)  # type: ignore[arg-type]
    assert Lease("a", None) in (lease for status in statuses for lease in status.leases)


async def test_one_that_loads_is_not_ended_on_condition(folder: Path) -> None:
    ready = asyncio.Event()
    async with running(folder, loads(ScriptedEngine(echo), ready.is_set)) as worker:
        refused = await end_if_idle(worker, "a")
        ready.set()
    assert refused.json()["error"]["details"]["reason"] == "it is loading"


async def test_the_hive_is_told_of_each_request_without_its_text(folder: Path, pipe: tuple[int, int]) -> None:
    async with running(folder, loads(ScriptedEngine(echo)), status_fd=pipe[1], keep_alive_s=300.0) as worker:
        who = {HEADER_KEEPER: "a", HEADER_WHO: "b%C3%A9e@host%0a"}
        body = request("a secret", max_tokens=3)
        await worker.client.post("/v1/inference", json=body, headers=who)
        await worker.client.post("/v1/embeddings", json={"input": ["a secret", "two"]})
        await worker.client.post("/v1/admin/bench", json={"prompt_tokens": 4, "generated_tokens": 1, "repetitions": 1})
    with os.fdopen(os.dup(pipe[0])) as lines:
        statuses = [decode(WorkerStatus, json.loads(line)) for line in lines]
    first, embedded, benched = [served for status in statuses for served in status.served]
    assert first == Served(body["request_id"], "a", "bée@host\\n", 9, 3, "length")
    assert (embedded.prompt_tokens, embedded.finish, embedded.keeper) == (13, "embedding", "")
    assert benched.finish == "bench"
    assert "secret" not in repr(statuses)
    assert statuses[-1].state.value == "stopping"


async def test_the_hive_is_told_since_when_a_worker_is_idle_again(folder: Path, pipe: tuple[int, int]) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), status_fd=pipe[1], keep_alive_s=300.0) as worker:
        body = request("hi")
        asking = asyncio.create_task(worker.client.post("/v1/inference", json=body))
        await gate.until_reached()
        asking.cancel()  # else the end of a reader's lease is told of, too
        await worker.client.delete(f"/v1/requests/{body['request_id']}")
        gate.let(100)
        await worker.until(lambda status: status["idle_s"] is not None)
    with os.fdopen(os.dup(pipe[0])) as lines:
        statuses = [decode(WorkerStatus, json.loads(line)) for line in lines]
    idle = [status for status in statuses if status.state.value == "idle"]
    assert idle[-1].idle_s is not None


async def test_requests_that_end_after_the_hive_are_in_the_log_nevertheless(folder: Path, tmp_path: Path) -> None:
    gate, (read_end, write_end) = Gate(), os.pipe()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), status_fd=write_end, home=str(tmp_path / "home")) as worker:
        asking = asyncio.create_task(infer(worker, "a"))
        await gate.until_reached()
        os.close(read_end)
        await worker.until(lambda status: status["state"] == "stopping")
        gate.let(100)
        request_id = await asking
        assert await asyncio.wait_for(worker.task, PATIENCE_S) == 0
    (line,) = (tmp_path / "home/log/audit.log").read_text().splitlines()
    entry = json.loads(line)
    assert (entry["action"], entry["request"], entry["keeper"]) == ("infer", request_id, "a")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 2}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
    ],
)
async def test_an_openai_request_holds_its_keepers_lease_for_as_long_as_it_runs(
    folder: Path, pipe: tuple[int, int], path: str, body: dict[str, Any], stream: bool
) -> None:
    """As one of rbee's own does: while it is open the lease has no end, and then it begins anew."""
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    values: dict[str, Any] = {"status_fd": pipe[1], "keeper": "a", "keep_alive_s": 300.0}
    async with running(folder, loads(engine), **values) as worker:
        await worker.until(lambda status: status["state"] == "idle")
        headers = {HEADER_KEEPER: "b", HEADER_WHO: "me@here"}
        asking = asyncio.create_task(worker.client.post(path, json={**body, "stream": stream}, headers=headers))
        await gate.until_reached()
        assert (await leases(worker))["b"] is None
        others = await end_if_idle(worker, "a")
        assert others.json()["error"]["details"]["reason"] == "a request is open"
        gate.let(1000)
        assert (await asking).status_code == 200
        await worker.until(lambda status: all(lease["left_s"] is not None for lease in status["leases"]))
        assert (await leases(worker))["b"] == pytest.approx(300, abs=30)
        held = await end_if_idle(worker, "a")
        assert "another keeper holds it for" in held.json()["error"]["message"]
    with os.fdopen(os.dup(pipe[0])) as lines:
        statuses = [decode(WorkerStatus, json.loads(line)) for line in lines]
    served = [served for status in statuses for served in status.served]
    assert [(one.keeper, one.who) for one in served] == [("b", "me@here")] * body.get("n", 1)


async def test_an_openai_request_that_its_client_leaves_gives_its_keepers_lease_an_end(folder: Path) -> None:
    gate = Gate()
    engine = ScriptedEngine(echo, before_step=gate.wait)
    async with running(folder, loads(engine), keeper="a", keep_alive_s=300.0) as worker:
        body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
        posting = worker.client.post("/v1/chat/completions", json=body, headers={HEADER_KEEPER: "b"})
        asking = asyncio.create_task(posting)
        await gate.until_reached()
        asking.cancel()
        gate.let(1000)
        await worker.until(lambda status: status["state"] == "idle")
        assert (await leases(worker))["b"] == pytest.approx(300, abs=30)
