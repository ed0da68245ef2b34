"""How much the node and its workers have to do, read when somebody watches.

Rules
- Nothing is read while nobody watches. Those who watch at the same time share one reading.
- GPUs are asked in a thread: a driver may block, and the readings of the rest come in time without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import psutil

from rbee_remote.hive.fit import resources
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import GpuLoad, NodeLoad
from rbee_remote.system import gpu_use
from rbee_remote.system.cores import usable_cores

#: Seconds between two readings at least.
INTERVAL_S = 1.0
#: A share of the processors' time is one of the last seconds: what is longer ago tells nothing of now.
_LONGEST_SPAN_S = 5.0
#: Where no driver told of a GPU, none is asked again for so long.
_NO_GPUS_S = 30.0
#: A reading with GPUs waits so long for their drivers; then it has what they said last.
_GPUS_S = 0.2


class Readings:
    """workers: those that there are now. gpus: asks the drivers, and may block."""

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerRecord]],
        gpus: Callable[[], tuple[GpuLoad, ...]] = gpu_use.gpu_loads,
    ) -> None:
        self._workers = workers
        self._ask_gpus = gpus
        self._gpus: tuple[GpuLoad, ...] = ()
        self._asking: asyncio.Task[None] | None = None
        self._ask_again_at = 0.0
        self._times: tuple[float, float, float] | None = None  # when, busy, all: seconds of processors' time
        self._cpu: float | None = None

    async def now(self) -> NodeLoad:
        """The node as it is."""
        await self._refresh_gpus()
        ram_total_mb, ram_used_mb = resources.ram_mb()
        return NodeLoad(
            at=round(time.monotonic(), 3),
            cores=usable_cores(),
            cpu=self._cpu_share(),
            ram_total_mb=ram_total_mb,
            ram_used_mb=ram_used_mb,
            gpus=self._gpus,
            workers=tuple(worker.load() for worker in self._workers()),
        )

    def _cpu_share(self) -> float | None:
        """Since the reading before; another one within the same moment has what that found. None where the system does
        not tell (Android, /proc shut off): the rest is worth telling."""
        try:
            times = psutil.cpu_times()
        except OSError:
            return None
        now, idle = time.monotonic(), times.idle + getattr(times, "iowait", 0.0)
        whole = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        before = self._times
        if before is not None and now - before[0] < INTERVAL_S / 2:
            return self._cpu
        self._times = (now, whole - idle, whole)
        if before is None or now - before[0] > _LONGEST_SPAN_S or whole <= before[2]:
            self._cpu = None
        else:
            self._cpu = round(min(max((whole - idle - before[1]) / (whole - before[2]), 0.0), 1.0), 3)
        return self._cpu

    async def _refresh_gpus(self) -> None:
        if self._asking is None:
            if time.monotonic() < self._ask_again_at:
                return
            self._asking = asyncio.create_task(self._read_gpus(), name="read the GPUs")
        await asyncio.wait({self._asking}, timeout=_GPUS_S)

    async def _read_gpus(self) -> None:
        try:
            self._gpus = await asyncio.to_thread(self._ask_gpus)
            self._ask_again_at = time.monotonic() + (INTERVAL_S / 2 if self._gpus else _NO_GPUS_S)
        finally:
            self._asking = None
