"""What a hive without a worker costs: resident memory, and the share of one core."""

from __future__ import annotations

import time

import psutil

from benchmarks.harness import Comparison
from benchmarks.testbed import keeper
from tests.testbed.node import wait_until

WATCHED_S = 60.0


def measure() -> list[Comparison]:
    with keeper() as rbee:
        rbee("infer", "--node", "local", "--max-tokens", "1", "Hello")
        for worker in rbee("workers", "list", "local", "--json").json():
            rbee("workers", "stop", worker["id"])
        wait_until(lambda: not rbee.local_workers(), 30, lambda: f"a worker is left: {rbee.local_workers()}")
        (hive,) = (process for process in rbee.node_processes() if "hive" in process.cmdline())
        cpu_percent = _cpu_percent(hive)
        rss_mb = hive.memory_info().rss / 1e6
    return [
        Comparison("resident memory of the hive", round(rss_mb, 1), goal=60, unit="MB"),
        Comparison("CPU of the hive", round(cpu_percent, 3), goal=0.1, unit="%"),
    ]


def _cpu_percent(process: psutil.Process) -> float:
    """Over `WATCHED_S` seconds, of one core."""

    def used() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    before, start = used(), time.monotonic()
    time.sleep(WATCHED_S)
    return 100 * (used() - before) / (time.monotonic() - start)
