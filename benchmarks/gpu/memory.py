"""What a model takes of the memory that counts: NVIDIA's GPUs by the driver's word, or in a rehearsal without one the
resident memory of the workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil

from benchmarks.gpu.node import GpuNode
from rbee_remote.hive.fit.resources import gpus

#: Until the driver has taken back what a process had.
FREED_S = 10.0


def used_mb(node: GpuNode) -> float:
    """By everybody on all GPUs, or by this node's workers in RAM."""
    if node.work.backend == "cuda":
        return float(sum(gpu.total_mb - gpu.free_mb for gpu in gpus()))
    return sum(float(process.memory_info().rss) for process in workers(node)) / 1e6


def workers(node: GpuNode) -> list[psutil.Process]:
    """The processes that hold the models."""
    return list(_workers(node))


def _workers(node: GpuNode) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if f"{node.home}/payloads/" in " ".join(words) and "worker" in words:
                yield process


def settled_mb(node: GpuNode, at_most: float) -> float:
    """What is used once it is no more than `at_most`, or when the time for that is over."""
    return wait(lambda: used_mb(node), lambda used: used <= at_most)


def wait(value: Callable[[], float], enough: Callable[[float], bool], seconds: float = FREED_S) -> float:
    deadline = time.monotonic() + seconds
    while not enough(found := value()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found
