"""How much a node has to do, as its hive reads it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rbee_remote.hive import readings
from rbee_remote.hive.fit.needs import Need
from rbee_remote.hive.fit.resources import Placement
from rbee_remote.hive.fit.scheduler import RAM, WorkerKey
from rbee_remote.hive.readings import Readings
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import GpuLoad, Lease, Work, WorkerLoad, WorkerOptions, WorkerState, WorkerStatus

GPU = GpuLoad("CUDA0", "NVIDIA H100", 85_000, 1_000, 0.5)
STATUS = WorkerStatus("a" * 16, "m", WorkerState.BUSY, 1.0, 512, 4, 3, 2, None, 60.0, work=Work(10, 5, 1, 0.2))


class Machine:
    """Processors whose times and a clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.user, self.idle = 1000.0, 100.0, 300.0
        monkeypatch.setattr(psutil, "cpu_times", self.times)
        monkeypatch.setattr(readings, "time", SimpleNamespace(monotonic=lambda: self.now))

    def times(self) -> object:
        class Times(tuple):  # type: ignore[type-arg]  # as psutil's, which have names
            idle = self.idle

        return Times((self.user, self.idle))

    def goes_on(self, seconds: float, *, busy: float, idle: float) -> None:
        self.now += seconds
        self.user += busy
        self.idle += idle


async def test_the_share_of_the_processors_is_since_the_reading_before(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    read = Readings(list, tuple)
    assert (await read.now()).cpu is None
    machine.goes_on(1.0, busy=1.0, idle=3.0)
    assert (await read.now()).cpu == 0.25
    machine.goes_on(0.1, busy=0.0, idle=0.4)
    assert (await read.now()).cpu == 0.25  # for the second who watches
    machine.goes_on(1.0, busy=4.0, idle=-0.5)  # idle times may go back
    assert (await read.now()).cpu == 1.0
    machine.goes_on(60.0, busy=60.0, idle=60.0)
    assert (await read.now()).cpu is None  # nobody watched meanwhile


async def test_where_processors_times_are_not_told_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut() -> object:
        raise PermissionError(13, "Permission denied", "/proc/stat")

    monkeypatch.setattr(psutil, "cpu_times", shut)
    found = await Readings(list, tuple).now()
    assert found.cpu is None
    assert found.ram_total_mb > 0


async def test_memory_cores_and_gpus_are_read() -> None:
    found = await Readings(list, lambda: (GPU,)).now()
    assert 0 < found.ram_used_mb <= found.ram_total_mb
    assert found.cores >= 1
    assert found.gpus == (GPU,)


async def test_a_driver_that_hangs_delays_no_reading_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "_GPUS_S", 0.01)
    answers, asked = threading.Event(), []

    def ask() -> tuple[GpuLoad, ...]:
        asked.append(1)
        answers.wait()
        return (GPU,)

    read = Readings(list, ask)
    try:
        assert [(await read.now()).gpus for _ in range(3)] == [(), (), ()]
    finally:
        answers.set()
    while not (await read.now()).gpus:
        await asyncio.sleep(0)
    assert len(asked) == 1


async def test_where_there_are_no_gpus_drivers_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    asked = []
    read = Readings(list, lambda: asked.append(1) or ())  # type: ignore[func-returns-value]
    await read.now()
    machine.goes_on(29.0, busy=0.0, idle=1.0)
    await read.now()
    assert len(asked) == 1
    machine.goes_on(2.0, busy=0.0, idle=1.0)
    await read.now()
    assert len(asked) == 2


def test_a_worker_that_only_has_done_more_wakes_nobody() -> None:
    key = WorkerKey("m", "/m.gguf", WorkerOptions(ctx=512, slots=4), WorkerOptions())
    worker = WorkerRecord(
        "a" * 16, key, Need(1, 0, 0), Placement("cpu", "cpu", RAM), False, 60.0, Path("/s"), Path("/l")
    )
    worker.state = WorkerState.LOADING
    worker.apply(STATUS)
    count = worker.changed.count
    worker.apply(replace(STATUS, work=Work(20, 5, 1, 0.2)))
    assert worker.changed.count == count
    assert worker.load() == WorkerLoad(worker.id, 1, 2, 0, Work(20, 5, 1, 0.2))
    for other in (
        replace(STATUS, slots_free=2),
        replace(STATUS, leases=(Lease("k", 5.0),)),
        replace(STATUS, state=WorkerState.READY),
        replace(STATUS, state=WorkerState.IDLE, idle_s=0.0),
    ):
        count = worker.changed.count
        worker.apply(other)
        assert worker.changed.count == count + 1
