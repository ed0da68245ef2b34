"""The GPUs that only Vulkan knows here, and their memory: ggml is asked, in a process of its own.

NVIDIA's library tells of its GPUs, the kernel of AMD's for ROCm (`resources`). Vulkan has devices of all makers, in an
order of its own, which the environment can change.

Rules
- An answer counts for as long as the workers are in the states that they were in, and some seconds at most: a worker
  that has loaded since is in what the driver says is free, and must not be left out of both.
- Where ggml has no answer there is no such GPU: a driver that ends one process would end a worker too.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rbee_remote.hive.fit.scheduler import MB
from rbee_remote.protocol import ProtocolError, RemoteError, WorkerOptions, decode
from rbee_remote.protocol.ggml_gpus import GgmlAnswer, GgmlGpu
from rbee_remote.system.gpu import GGML, Gpu
from rbee_remote.system.gpu_visible import HIP, ROCR, vulkan_settings
from rbee_remote.system.helper import run_helper

_log = logging.getLogger(__name__)

#: It initialises a driver, which takes seconds on a GPU that nobody uses.
_TIMEOUT_S = 60.0
_KEPT_S = 5.0

_VULKAN = re.compile(r"Vulkan(\d{1,3})", re.ASCII)
_AMD = re.compile(r"\b(AMD|Radeon)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Question:
    """env: what of a worker's environment decides which GPUs there are. workers: who is there, and its state."""

    env: tuple[tuple[str, str], ...]
    workers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, env: Mapping[str, str], workers: Sequence[tuple[str, str]]) -> Question:
        return cls(vulkan_settings(env), tuple(sorted(workers)))


class GgmlDevices:
    """Used from the hive's event loop alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked: Question | None = None
        self._at = 0.0
        self._gpus: tuple[Gpu, ...] = ()

    def known(self, question: Question) -> tuple[Gpu, ...] | None:
        """None where it has to be asked."""
        fresh = question == self._asked and self._clock() - self._at < _KEPT_S
        return self._gpus if fresh else None

    async def ask(self, question: Question) -> None:
        env = os.environ | dict(question.env)
        try:
            answer = decode(GgmlAnswer, await run_helper("ggml_gpus", env=env, timeout_s=_TIMEOUT_S))
            found = tuple(filter(None, map(_gpu, answer.gpus)))
        except (RemoteError, ProtocolError, TimeoutError) as error:
            _log.warning("ggml does not tell which GPUs there are: %s", error)
            found = ()
        self._asked, self._at, self._gpus = question, self._clock(), found


def _gpu(device: GgmlGpu) -> Gpu | None:
    named = _VULKAN.fullmatch(device.id)
    if named is None:
        return None
    free, total = device.free // MB, device.total // MB
    return Gpu(int(named[1]), device.name, total, free, vendor=GGML, integrated=device.integrated, pci=device.pci)


def not_hidden(
    ggml: Sequence[Gpu], there: Sequence[Gpu], visible: Sequence[Gpu], env: Mapping[str, str]
) -> tuple[Gpu, ...]:
    """Without those that the environment hides, as a batch system's does: Vulkan shows them all the same. there: all
    that the drivers tell of. Of AMD's its own variables count: CUDA_VISIBLE_DEVICES means others where Vulkan computes.

    They are told apart by their address on the bus. Where Vulkan's driver does not say it, by name: of like GPUs, of
    which one is hidden, none is left, and of AMD's, which the kernel names in its own way, none at all.
    GGML_VK_VISIBLE_DEVICES is a choice made for Vulkan, and counts alone.
    """
    if env.get("GGML_VK_VISIBLE_DEVICES"):
        return tuple(ggml)
    makers = {"nvidia", "amd"} if ROCR in env or HIP in env else {"nvidia"}
    shown = {gpu.id for gpu in visible}
    hidden = [gpu for gpu in there if gpu.vendor in makers and gpu.id not in shown]
    places = {gpu.pci for gpu in hidden} - {gpu.pci for gpu in there if gpu.id in shown}
    names = {gpu.name for gpu in hidden}
    amd = any(gpu.vendor == "amd" for gpu in hidden)

    def is_hidden(gpu: Gpu) -> bool:
        return gpu.pci in places if gpu.pci else gpu.name in names or (amd and bool(_AMD.search(gpu.name)))

    return tuple(gpu for gpu in ggml if not is_hidden(gpu))


def has_to_be_asked(options: WorkerOptions, available: frozenset[str], *, cuda: bool) -> bool:
    """Whether a worker with these options could get such a GPU. available: what the runtime has. cuda: whether there
    is a GPU of NVIDIA's."""
    if not options.uses_gpus or "vulkan" not in available:
        return False
    preferred = available.intersection(("metal", "rocm")) or (cuda and "cuda" in available)
    return options.backend == "vulkan" or (options.backend == "auto" and not preferred)
