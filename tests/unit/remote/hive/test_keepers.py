"""Supervisor and audit log with scripted workers: several keepers, conditional ends, workers that hang."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import anyio
import pytest

from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import SERVING
from rbee_remote.hive.supervisor import Supervisor
from rbee_remote.protocol import ErrorCode, RemoteError, SpawnRequest, StopRequest, WorkerState
from rbee_remote.protocol.audit import unpack_head, verify
from rbee_remote.system.caller import Caller
from rbee_remote.system.layout import Layout
from tests.patience import PATIENCE_S
from tests.unit.remote.hive.test_supervisor import TIMING, layout, pid, serving, spawn, supervising, until

__all__ = ["layout"]  # the fixture

A, B = Caller("a", "anna@one"), Caller("b", "ben@two")
IF_IDLE = StopRequest(patience_s=1.0, only_idle_s=0.0)


def with_env(request: SpawnRequest, **env: str) -> SpawnRequest:
    return replace(request, env={**request.env, **env})


def audit(layout: Layout) -> list[dict[str, Any]]:
    return [json.loads(line) for line in layout.audit_log.read_bytes().splitlines()]


def actions(layout: Layout, *of: str) -> list[tuple[str, str]]:
    return [(entry["action"], entry["keeper"]) for entry in audit(layout) if not of or entry["action"] in of]


def held_by(worker: WorkerRecord) -> list[tuple[str, float | None]]:
    return [(lease.keeper, lease.left_s) for lease in worker.info().leases]


async def test_fifty_keepers_at_once_get_one_worker_and_a_lease_each(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        async with anyio.create_task_group() as clients:
            for number in range(50):
                request = spawn(keep_alive_s=100.0 + number)
                clients.start_soon(supervisor.ensure, request, Caller(f"k{number}"))
        (worker,) = supervisor.live()
        await until(worker, lambda: len(worker.leases) == 50)
        assert dict(held_by(worker)) == {f"k{number}": pytest.approx(100 + number, abs=15) for number in range(50)}
    assert Counter(action for action, _ in actions(layout))["worker.start"] == 1


async def test_leases_run_down_while_the_worker_says_nothing(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker, _ = await supervisor.ensure(spawn(keep_alive_s=0.5), A)
        await until(worker, lambda: worker.state in SERVING)
        await supervisor.ensure(spawn(keep_alive_s=500.0), B)
        await until(worker, lambda: [keeper for keeper, _ in held_by(worker)] == ["b"])


async def test_who_comes_while_a_worker_ends_gets_another(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        ending = await serving(supervisor, spawn(script="ending"))
        other, started = await supervisor.ensure(spawn(), B)
        assert started
        assert other is not ending
        assert ending.gone.is_set()


async def test_a_worker_is_ended_on_condition_only_when_it_agrees(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker = await serving(supervisor, with_env(spawn(), IN_USE="a request is open"))
        with pytest.raises(RemoteError) as refused:
            await supervisor.stop_if_idle(worker, IF_IDLE, B)
        assert refused.value.code is ErrorCode.IN_USE
        assert worker.state is WorkerState.IDLE
        other = await serving(supervisor, spawn("two"))
        await supervisor.stop_if_idle(other, IF_IDLE, B)
        assert other.gone.is_set()
        assert [worker.id for worker in supervisor.live()] == [worker.id]
    assert actions(layout, "gc", "worker.stop") == [("gc", "b")]


@pytest.mark.parametrize("script", ["deaf", "hang"])
async def test_one_that_does_not_answer_is_not_ended_on_condition(layout: Layout, script: str) -> None:
    async with supervising(layout, replace(TIMING, check=60)) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script=script))
        await until(worker, lambda: worker.state is not WorkerState.STARTING and worker.progress > 0)
        if script == "deaf":
            await until(worker, lambda: worker.state in SERVING)
        before = worker.state
        with pytest.raises(RemoteError) as refused:
            await supervisor.stop_if_idle(worker, replace(IF_IDLE, patience_s=0.2), B)
        assert refused.value.code is ErrorCode.IN_USE
        assert refused.value.details["reason"]
        assert worker.state is before
        os.kill(pid(worker), 0)


async def test_a_stopped_worker_is_found_and_ended_soon(layout: Layout) -> None:
    async with supervising(layout, replace(TIMING, check=60, stopped=0.3)) as supervisor:
        worker = await serving(supervisor, spawn())
        os.kill(pid(worker), signal.SIGSTOP)
        began = time.monotonic()
        await until(worker, worker.gone.is_set)
        assert time.monotonic() - began < StopRequest().patience_s, "nothing gentler than SIGKILL reaches it"
        assert worker.error is not None
        assert worker.error.code is ErrorCode.WORKER_CRASHED
        assert "was stopped (SIGSTOP)" in worker.error.message
        assert worker.info().state is WorkerState.FAILED
        again, started = await supervisor.ensure(spawn())
        assert started
    crashes = [entry for entry in audit(layout) if entry["action"] == "worker.crash"]
    assert [(entry["worker"], entry["reason"]) for entry in crashes] == [(worker.id, "WORKER_CRASHED")]
    assert again.id != worker.id


async def test_one_that_is_continued_in_time_is_left_alone(layout: Layout) -> None:
    async with supervising(layout, replace(TIMING, check=60, stopped=60)) as supervisor:
        worker = await serving(supervisor, spawn())
        os.kill(pid(worker), signal.SIGSTOP)
        await until(worker, lambda: worker.stopped_at is not None)
        os.kill(pid(worker), signal.SIGCONT)
        await until(worker, lambda: worker.stopped_at is None)
        assert worker.state is WorkerState.IDLE


async def test_a_silent_worker_is_asked_more_often_when_somebody_waits(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee_remote.hive.worker_calls.HEALTH_TIMEOUT_S", 0.2)
    monkeypatch.setattr("rbee_remote.hive.worker_calls.LEASE_TIMEOUT_S", 0.2)
    async with supervising(layout, replace(TIMING, check=600, check_in_use=0.1)) as supervisor:
        worker = await serving(supervisor, spawn(script="deaf"))
        same, started = await supervisor.ensure(spawn(script="deaf"), B)
        assert (same, started) == (worker, False), "silence is no evidence yet"
        await until(worker, worker.gone.is_set)
        assert worker.error is not None
        assert "does not answer any more" in worker.error.message


async def test_a_worker_that_falls_silent_while_it_drains_is_ended(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee_remote.hive.worker_calls.HEALTH_TIMEOUT_S", 0.2)
    async with supervising(layout, replace(TIMING, check=0.1)) as supervisor:
        worker = await serving(supervisor, spawn(script="deafened", busy=True))
        with anyio.fail_after(PATIENCE_S):
            await supervisor.stop(worker, StopRequest(patience_s=5.0))
        assert worker.error is not None
        assert "does not answer any more" in worker.error.message


@pytest.mark.parametrize("state", ["tracing-stop", "disk-sleep"])
async def test_one_that_is_silent_for_a_reason_is_let_be(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("rbee_remote.hive.worker_calls.HEALTH_TIMEOUT_S", 0.05)
    monkeypatch.setattr("psutil.Process.status", lambda _: state)
    async with supervising(layout, replace(TIMING, check=0.05)) as supervisor:
        worker = await serving(supervisor, spawn(script="deaf"))
        await anyio.sleep(1.5)
        assert (worker.missed_checks, worker.error) == (0, None)
        monkeypatch.setattr("psutil.Process.status", lambda _: "sleeping")
        await until(worker, worker.gone.is_set)


async def test_time_in_which_the_hive_slept_is_nobodys_silence(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee_remote.hive.watch.SLEPT_S", 0.5)
    async with supervising(layout, replace(TIMING, stall=3.0)) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="hang"))
        await until(worker, lambda: worker.progress > 0)
        time.sleep(4.0)
        await anyio.sleep(0.3)
        assert worker.error is None
        await until(worker, worker.gone.is_set)
        assert worker.error is not None


async def test_a_silent_worker_delays_no_other(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee_remote.hive.worker_calls.HEALTH_TIMEOUT_S", 30.0)
    async with supervising(layout, replace(TIMING, stopped=0.2)) as supervisor:
        deaf = await serving(supervisor, spawn("one", script="deaf"))
        await until(deaf, lambda: deaf.being_checked)
        other = await serving(supervisor, spawn("two"))
        os.kill(pid(other), signal.SIGSTOP)
        await until(other, other.gone.is_set)
        assert deaf.state is WorkerState.IDLE


async def test_each_request_is_in_the_audit_log(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker, _ = await supervisor.ensure(with_env(spawn(), SERVED="3"), A)
        await until(worker, lambda: worker.state in SERVING)
    start, *rest = audit(layout)
    assert (start["action"], start["keeper"], start["who"], start["worker"]) == (
        "worker.start",
        "a",
        "anna@one",
        worker.id,
    )
    served = [entry for entry in rest if entry["action"] == "infer"]
    assert [entry["request"] for entry in served] == [f"{number:032x}" for number in range(3)]
    told = {name: served[0][name] for name in ("keeper", "who", "model", "worker", "completion_tokens", "finish")}
    assert told == {
        "keeper": "k", "who": "me@here", "model": "one", "worker": worker.id, "completion_tokens": 2, "finish": "stop",
    }  # fmt: skip


async def test_what_cannot_be_recorded_is_not_started(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        full = layout.logs / "audit.log"
        full.mkdir()
        with pytest.raises(RemoteError, match="nothing was done"):
            await supervisor.ensure(spawn(), A)
        assert supervisor.workers() == []
        full.rmdir()
        await serving(supervisor, spawn())


async def test_a_cleaned_run_folder_does_not_cut_off_who_is_being_served(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker = await serving(supervisor, spawn(busy=True))
        worker.socket.unlink()
        async with anyio.create_task_group() as stops:
            stops.start_soon(supervisor.stop, worker, StopRequest(patience_s=0.5))
            await anyio.sleep(1.0)
            os.kill(pid(worker), 0)
            os.kill(pid(worker), signal.SIGUSR1)  # it says that its request is over
        assert worker.gone.is_set()


async def test_hives_that_share_a_home_keep_one_chain(layout: Layout) -> None:
    async with supervising(layout, TIMING) as one, anyio.create_task_group() as tasks:
        two = Supervisor(layout, one._catalog, tasks, worker_command=one._processes._command)
        await serving(one, spawn("one"))
        await serving(two, spawn("two"))
        await serving(one, spawn("three"))
        await two.stop_all(StopRequest(drain=False, patience_s=0.5))
    lines = layout.audit_log.read_bytes().splitlines()
    assert len(lines) >= 4
    assert verify(lines, unpack_head((layout.logs / "audit.head").read_bytes())) == []
