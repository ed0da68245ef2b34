"""A deadline that comes with a spawn request: the hive keeps to it by itself, whatever became of the keeper."""

from __future__ import annotations

import anyio
import pytest

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerState
from rbee_remote.system.layout import Layout
from tests.unit.remote.hive.test_supervisor import TIMING, layout, serving, spawn, supervising, until

__all__ = ["layout"]  # the fixture


async def test_a_load_is_given_up_when_nobody_wants_it_any_longer(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="hang", timeout_s=0.3))
        await until(worker, worker.gone.is_set)
        assert worker.state is WorkerState.FAILED
        assert worker.error is not None
        assert worker.error.code is ErrorCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("other", [None, 60.0], ids=["no deadline", "a later one"])
async def test_somebody_who_waits_longer_keeps_the_load(layout: Layout, other: float | None) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker, _ = await supervisor.ensure(spawn(script="hang", timeout_s=other))
        again, started = await supervisor.ensure(spawn(script="hang", timeout_s=0.1))
        assert (again, started) == (worker, False)
        with anyio.move_on_after(0.1 + 5 * TIMING.tick):
            await worker.gone.wait()
        assert worker.state in (WorkerState.STARTING, WorkerState.LOADING)


async def test_a_worker_that_serves_stays(layout: Layout) -> None:
    async with supervising(layout, TIMING) as supervisor:
        worker = await serving(supervisor, spawn(timeout_s=60.0))
        worker.wanted_until = 0.0  # the deadline has passed
        with anyio.move_on_after(5 * TIMING.tick):
            await worker.gone.wait()
        assert worker.state is WorkerState.IDLE


async def test_a_deadline_ends_the_wait_for_room(layout: Layout) -> None:
    """The worker that has to go first ignores SIGTERM."""
    async with supervising(layout, TIMING) as supervisor:
        first, _ = await supervisor.ensure(spawn("one", script="stubborn"))
        await until(first, lambda: first.state is WorkerState.LOADING)
        supervisor.fail(first, RemoteError(ErrorCode.WORKER_CRASHED, "no use any more"))
        with pytest.raises(RemoteError) as caught:
            await supervisor.ensure(spawn("two", max_workers=1, timeout_s=0.2))
        assert caught.value.code is ErrorCode.DEADLINE_EXCEEDED
        assert supervisor.uses(str(layout.models / "two.gguf")) is None
