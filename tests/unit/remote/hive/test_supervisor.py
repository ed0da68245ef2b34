"""The supervisor with processes that follow a script, each told by the environment of its spawn request."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from rbee_remote.hive import watch
from rbee_remote.hive.fit import meter, resources
from rbee_remote.hive.fit.meter import Job
from rbee_remote.hive.models.catalog import Catalog
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import SERVING
from rbee_remote.hive.supervisor import Supervisor, Timing
from rbee_remote.protocol import (
    ErrorCode,
    ModelInfo,
    ModelMeta,
    NeedsRequest,
    RemoteError,
    SpawnRequest,
    StopRequest,
    WorkerOptions,
    WorkerState,
)
from rbee_remote.protocol.load_options import MOST_CTX, MOST_SLOTS
from rbee_remote.protocol.measuring import MeasureAnswer, Point
from rbee_remote.system import gpu_users
from rbee_remote.system.gpu import Gpu
from rbee_remote.system.layout import Layout
from rbee_remote.system.time_limit import TimeLimit
from tests.doubles import nvml
from tests.patience import PATIENCE_S

META = ModelMeta("llama", 2, 2048, 64, 256, 2, 16, 16)
SCRIPT = [sys.executable, str(Path(__file__).with_name("scripted_worker.py"))]
TIMING = Timing(tick=0.05, check=0.1, stall=60.0, failed_visible=60.0)
QUICK = StopRequest(patience_s=0.5)


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with tempfile.TemporaryDirectory(prefix="rbee-", dir="/tmp") as run_dir:
        made = Layout(home=tmp_path / "home", run_dir=Path(run_dir) / "run")
        made.prepare()
        for model in ("one", "two", "three"):
            file = made.models / f"{model}.gguf"
            file.write_bytes(b"GGUF")
            Catalog(made.models).add(ModelInfo(model, str(file), 4, "", True, "", 0.0, META))
        yield made
        assert list(made.run_dir.iterdir()) == []


@asynccontextmanager
async def supervising(layout: Layout, timing: Timing = TIMING) -> AsyncIterator[Supervisor]:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(layout, Catalog(layout.models), tasks, timing=timing, worker_command=SCRIPT)
        tasks.start_soon(watch.watch, supervisor)
        try:
            yield supervisor
        finally:
            with anyio.CancelScope(shield=True):
                await supervisor.stop_all(StopRequest(drain=False, patience_s=0.5))
            tasks.cancel_scope.cancel()


def spawn(model: str = "one", *, script: str = "serve", busy: bool = False, **fields: Any) -> SpawnRequest:
    env = {"SCRIPT": script, "BUSY": "1" if busy else "0"}
    return SpawnRequest(model, WorkerOptions(backend="cpu"), env=env, **fields)


async def until(worker: WorkerRecord, condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():
            with anyio.move_on_after(0.1):
                await worker.changed.wait()


async def serving(supervisor: Supervisor, request: SpawnRequest) -> WorkerRecord:
    worker, _ = await supervisor.ensure(request)
    await until(worker, lambda: worker.state in SERVING)
    return worker


def pid(worker: WorkerRecord) -> int:
    assert worker.child is not None
    return worker.child.identity.pid


async def test_a_worker_that_serves_is_not_believed_that_it_loads(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="confused"))
        await until(worker, lambda: worker.state is WorkerState.READY)
        assert worker.progress == 1.0


async def test_twenty_at_once_share_one_worker(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        got: list[tuple[WorkerRecord, bool]] = []

        async def ask() -> None:
            got.append(await supervisor.ensure(spawn()))

        async with anyio.create_task_group() as clients:
            for _ in range(20):
                clients.start_soon(ask)
        assert {worker.id for worker, _ in got} == {supervisor.live()[0].id}
        assert sum(started for _, started in got) == 1


async def test_other_options_are_another_worker(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        first, _ = await supervisor.ensure(spawn())
        request = spawn()
        same, _ = await supervisor.ensure(replace(request, options=replace(request.options, ctx=2048)))
        less, _ = await supervisor.ensure(replace(request, options=replace(request.options, ctx=1024)))
        other, _ = await supervisor.ensure(replace(request, options=replace(request.options, ctx=4096)))
        assert same is first, "what was left open is resolved before it is compared"
        assert less is first, "it has all the context that is needed"
        assert other is not first


async def test_a_worker_says_how_it_is_and_is_stopped(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker = await serving(supervisor, spawn(keep_alive_s=7))
        await until(worker, lambda: worker.rss_mb > 0)
        info = worker.info()
        assert (info.state, info.ctx, info.slots_free, info.keep_alive_s) == (WorkerState.IDLE, 2048, 4, 7)
        assert info.pid == pid(worker)
        assert info.idle_s is not None
        await supervisor.stop(worker, QUICK)
        assert supervisor.workers() == []
        with pytest.raises(ProcessLookupError):
            os.kill(info.pid, 0)


async def test_a_crash_is_told_with_signal_and_log_and_then_forgotten(layout: Layout) -> None:
    async with supervising(layout, replace(TIMING, failed_visible=1.0)) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="crash"))
        await until(worker, worker.gone.is_set)
        error = RemoteError.decode({"error": worker.info().error})
        assert worker.info().state is WorkerState.FAILED
        assert error.code is ErrorCode.WORKER_CRASHED
        assert error.details["signal"] == "SIGSEGV"
        assert error.details["last_lines"] == ["script crash"]
        assert supervisor.live() == []
        await until(worker, lambda: supervisor.workers() == [])


async def test_sigkill_from_outside_is_a_crash_and_the_next_one_starts_afresh(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker = await serving(supervisor, spawn())
        os.kill(pid(worker), signal.SIGKILL)
        await until(worker, worker.gone.is_set)
        assert worker.error is not None
        assert worker.error.details["signal"] == "SIGKILL"
        again, started = await supervisor.ensure(spawn())
        assert started
        assert again is not worker


async def test_a_workers_own_error_is_passed_on(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="fail"))
        await until(worker, worker.gone.is_set)
        assert worker.error is not None
        assert worker.error.code is ErrorCode.MODEL_INVALID


async def test_a_load_without_progress_is_ended(layout: Layout) -> None:
    async with supervising(layout, replace(TIMING, stall=3.0)) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="hang"))
        await until(worker, worker.gone.is_set)
        assert worker.error is not None
        assert worker.error.code is ErrorCode.LOADING_TIMEOUT
        assert worker.error.details == {"progress_percent": 25, "log": str(worker.log)}
        with pytest.raises(ProcessLookupError):
            os.kill(pid(worker), 0)


async def test_one_that_ignores_sigterm_is_killed(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="stubborn"))
        await until(worker, lambda: worker.state is WorkerState.LOADING)
        await supervisor.stop(worker, QUICK)
        assert supervisor.workers() == []


async def test_a_line_that_is_no_status_does_no_harm(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker = await serving(supervisor, spawn(script="broken"))
        assert worker.state is WorkerState.IDLE


async def test_a_worker_that_cannot_be_started_is_an_error_and_not_the_hives_end(layout: Layout) -> None:
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(layout, Catalog(layout.models), tasks, worker_command=["/does/not/exist"])
        worker, _ = await supervisor.ensure(spawn())
        await until(worker, worker.gone.is_set)
        assert worker.error is not None
        assert worker.error.code is ErrorCode.WORKER_CRASHED
        assert "/does/not/exist" in worker.error.message


async def test_the_least_recently_used_idle_worker_makes_room(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        first = await serving(supervisor, spawn("one"))
        second = await serving(supervisor, spawn("two"))
        third, _ = await supervisor.ensure(spawn("three", max_workers=2))
        assert first.gone.is_set()
        assert {worker.id for worker in supervisor.live()} == {second.id, third.id}


async def test_a_busy_worker_is_never_evicted(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        busy = await serving(supervisor, spawn("one", busy=True))
        with pytest.raises(RemoteError) as failure:
            await supervisor.ensure(spawn("two", max_workers=1))
        assert failure.value.code is ErrorCode.NODE_BUSY
        assert supervisor.live() == [busy]


async def test_a_draining_worker_is_waited_for(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        busy = await serving(supervisor, spawn(busy=True))
        async with anyio.create_task_group() as stopping:
            stopping.start_soon(supervisor.stop, busy, QUICK)
            await until(busy, busy.gone.is_set)
        assert supervisor.workers() == []
        assert busy.error is None


async def test_what_does_not_fit_is_refused_with_figures(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBEE_RAM_LIMIT_MB", "10")
    async with supervising(layout) as supervisor:
        with pytest.raises(RemoteError) as early:
            await supervisor.preflight(spawn())
        with pytest.raises(RemoteError) as late:
            await supervisor.ensure(spawn())
        for error in (early.value, late.value):
            assert error.code is ErrorCode.RAM_EXHAUSTED
            assert error.details["available_mb"] == 10
            assert error.details["needed_mb"] > 10
            assert "slots" not in error.hint  # one was all that was tried in the end
        with pytest.raises(RemoteError, match="MB are available") as many:
            await supervisor.ensure(replace(spawn(), options=replace(spawn().options, slots=4)))
        assert "fewer slots" in many.value.hint
        assert supervisor.workers() == []


async def test_what_is_absurd_is_refused_at_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes minutes and gigabytes to lay out that many cells."""
    asked: list[Point] = []

    async def hear(job: Job) -> MeasureAnswer:
        asked.extend(job.points)
        raise TimeoutError

    monkeypatch.setattr(meter, "_ask", hear)
    async with supervising(layout) as supervisor:
        options = WorkerOptions(backend="cpu", ctx=MOST_CTX, slots=MOST_SLOTS)
        with pytest.raises(RemoteError) as refused:
            await supervisor.preflight(replace(spawn(), options=options))
        assert refused.value.code is ErrorCode.RAM_EXHAUSTED
        assert "smaller context" in refused.value.hint
        assert asked == []
        table = await supervisor.needs(NeedsRequest("one", ctx=(MOST_CTX,), slots=(1, MOST_SLOTS)))
        assert table.points[1].needed_mb > refused.value.details["available_mb"]
        assert asked
        assert Point(MOST_CTX, MOST_SLOTS) not in asked


async def test_memory_is_made_by_evicting_and_what_loads_is_counted(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervising(layout) as supervisor:
        needed = (await supervisor.preflight(spawn())).needed_mb
        monkeypatch.setenv("RBEE_RAM_LIMIT_MB", str(needed * 3 // 2))
        first = await serving(supervisor, spawn("one"))
        assert (await supervisor.preflight(spawn("two"))).available_mb >= needed
        second, _ = await supervisor.ensure(spawn("two"))
        assert first.gone.is_set()
        assert supervisor.live() == [second]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "unknown"}, ErrorCode.MODEL_NOT_FOUND),
        ({"model": "a\nb"}, ErrorCode.USAGE),
        ({"max_workers": 0}, ErrorCode.USAGE),
        ({"env": {"A=B": "x"}}, ErrorCode.USAGE),
        ({"env": {"A": "x\0"}}, ErrorCode.USAGE),
        ({"options": WorkerOptions(backend="tpu")}, ErrorCode.USAGE),
        ({"options": WorkerOptions(backend="rocm")}, ErrorCode.BACKEND_UNAVAILABLE),
        ({"options": WorkerOptions(backend="cpu", slots=0)}, ErrorCode.USAGE),
        ({"options": WorkerOptions(backend="cpu", ctx=-1)}, ErrorCode.USAGE),
        ({"options": WorkerOptions(backend="cpu", threads=0)}, ErrorCode.USAGE),
    ],
)
async def test_what_cannot_be_is_refused(layout: Layout, change: dict[str, Any], code: ErrorCode) -> None:
    async with supervising(layout) as supervisor:
        with pytest.raises(RemoteError) as failure:
            await supervisor.ensure(replace(spawn(), **change))
        assert failure.value.code is code
        assert supervisor.workers() == []


async def test_no_work_is_taken_any_more_at_the_end(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        worker = await serving(supervisor, spawn())
        await supervisor.stop_all(QUICK)
        assert worker.gone.is_set()
        with pytest.raises(RemoteError) as failure:
            await supervisor.ensure(spawn())
        assert failure.value.code is ErrorCode.WORKER_GONE


async def test_secrets_of_the_hives_environment_stay_there(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HARMLESS", "1")
    async with supervising(layout) as supervisor:
        worker = await serving(supervisor, spawn())
        environment = Path(f"/proc/{pid(worker)}/environ").read_bytes().split(b"\0")
        assert b"HARMLESS=1" in environment
        assert not [line for line in environment if b"hf_secret" in line]


async def test_there_are_fewer_slots_where_memory_is_short_and_that_worker_is_found_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with supervising(layout) as supervisor:
        request = spawn()
        two = await supervisor.preflight(replace(request, options=replace(request.options, slots=2)))
        four = await supervisor.preflight(request)
        assert (four.slots, four.ctx) == (4, 2048)
        assert two.needed_mb < four.needed_mb
        monkeypatch.setenv("RBEE_RAM_LIMIT_MB", str(four.needed_mb - 1))
        worker = await serving(supervisor, request)
        assert worker.slots < 4
        assert worker.info().options == worker.key.options
        monkeypatch.delenv("RBEE_RAM_LIMIT_MB")
        again, started = await supervisor.ensure(request)
        assert (again, started) == (worker, False)
        exactly, started = await supervisor.ensure(replace(request, options=replace(request.options, slots=4)))
        assert (exactly.slots, started) == (4, True)


async def test_the_largest_context_is_found_again(layout: Layout) -> None:
    async with supervising(layout) as supervisor:
        request = replace(spawn(), options=WorkerOptions(backend="cpu", ctx=0))
        worker = await serving(supervisor, request)
        assert worker.ctx == 2048, "what the model was trained for"
        assert (await supervisor.ensure(request))[0] is worker


async def test_a_worker_spins_long_while_it_has_the_cores_to_itself(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)

    def spins(worker: WorkerRecord) -> bytes:
        environment = Path(f"/proc/{pid(worker)}/environ").read_bytes().split(b"\0")
        (value,) = (line.partition(b"=")[2] for line in environment if line.startswith(b"GOMP_SPINCOUNT="))
        return value

    async with supervising(layout) as supervisor:
        alone = await serving(supervisor, spawn("one"))
        beside = await serving(supervisor, spawn("two"))
        told = spawn("three")
        told = replace(told, env={**told.env, "GOMP_SPINCOUNT": "7"})
        assert (spins(alone), spins(beside), spins(await serving(supervisor, told))) == (b"300000", b"300", b"7")


async def test_a_gpu_driver_that_hangs_keeps_neither_the_others_waiting_nor_the_cpu_from_work(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[threading.Thread] = []

    class Drivers(TimeLimit[list[Gpu]]):
        def ask(self, question: Callable[[], list[Gpu]]) -> list[Gpu] | None:
            if self._stuck is None:
                waited.append(threading.current_thread())
            return super().ask(question)

    nvml.install(monkeypatch, "hangs")
    monkeypatch.setattr(resources, "_DRIVERS", Drivers(0.1))
    monkeypatch.setattr(gpu_users, "_DRIVER", TimeLimit(0.1))
    async with supervising(layout) as supervisor:
        await serving(supervisor, spawn())
    assert waited
    assert threading.current_thread() not in waited, "the event loop waited for the driver"
