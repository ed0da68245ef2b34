"""The GPUs that NVIDIA's library does not know, and their memory: ggml is asked, in a process of its own.

Rules
- An answer counts for as long as the workers are in the states that they were in, and some seconds at most: a worker
  that has loaded since is in what the driver says is free, and must not be left out of both.
- Where ggml has no answer there is no such GPU: a driver that ends one process would end a worker too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rbee_remote.hive.fit.scheduler import MB
from rbee_remote.protocol import ProtocolError, RemoteError, WorkerOptions, decode
from rbee_remote.protocol.devices import DevicesAnswer, GgmlDevice
from rbee_remote.system.gpu_choice import choose_gpus, used_ones
from rbee_remote.system.helper import run_helper

_log = logging.getLogger(__name__)

#: Backends whose GPUs are found this way, the better one first.
ASKED = ("rocm", "vulkan")

#: It initialises a driver, which takes seconds on a GPU that nobody uses.
_TIMEOUT_S = 60.0
_KEPT_S = 5.0


@dataclass(frozen=True, slots=True)
class GgmlGpu:
    """id: ggml's name for it, Vulkan0. is_integrated: its memory is the machine's RAM."""

    id: str
    name: str
    total_mb: int
    free_mb: int
    backend: str
    is_integrated: bool

    @classmethod
    def of(cls, device: GgmlDevice) -> GgmlGpu:
        free, total = device.free // MB, device.total // MB
        return cls(device.id, device.name, total, free, device.backend, device.integrated)


@dataclass(frozen=True, slots=True)
class Question:
    """env: what a worker would be given, which can hide GPUs. workers: who is there, and its state."""

    env: tuple[tuple[str, str], ...]
    workers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, env: Mapping[str, str], workers: Sequence[tuple[str, str]]) -> Question:
        return cls(tuple(sorted(env.items())), tuple(sorted(workers)))


class GgmlDevices:
    """Used from the hive's event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: Question | None = None
        self._at = 0.0
        self._gpus: tuple[GgmlGpu, ...] = ()

    def known(self, question: Question) -> tuple[GgmlGpu, ...] | None:
        """None where it has to be asked."""
        fresh = question == self._asked and self._clock() - self._at < _KEPT_S
        return self._gpus if fresh else None

    async def ask(self, question: Question) -> None:
        try:
            answer = decode(DevicesAnswer, await run_helper("devices", env=dict(question.env), timeout_s=_TIMEOUT_S))
            found = tuple(map(GgmlGpu.of, answer.devices))
        except (RemoteError, ProtocolError, TimeoutError) as error:
            _log.warning("ggml does not tell which GPUs there are: %s", error)
            found = ()
        self._asked, self._at, self._gpus = question, self._clock(), found


def has_to_be_asked(options: WorkerOptions, available: frozenset[str], *, cuda: bool) -> bool:
    """Whether a worker with these options could get such a GPU. available: what the runtime has. cuda: whether there
    is a GPU that would be preferred."""
    if options.gpu_layers == 0:
        return False
    if options.backend == "auto":
        return not (cuda and "cuda" in available) and not available.isdisjoint(ASKED)
    return options.backend in ASKED and options.backend in available


def best_backend(gpus: Sequence[GgmlGpu]) -> str | None:
    """The first of ASKED that has one of the GPUs."""
    return next((backend for backend in ASKED if any(gpu.backend == backend for gpu in gpus)), None)


def chosen(gpus: Sequence[GgmlGpu], backend: str, options: WorkerOptions) -> tuple[GgmlGpu, ...]:
    """As the worker will choose, by llama.cpp's own rule; none where the backend has none. Raises RemoteError USAGE."""
    there = used_ones([gpu for gpu in gpus if gpu.backend == backend])
    return choose_gpus(there, options) if there else ()
