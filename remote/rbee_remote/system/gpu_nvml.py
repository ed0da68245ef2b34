"""NVIDIA's GPUs as their driver tells of them, by NVML: a thin reader over `pynvml` (nvidia-ml-py).

Rules
- Each GPU is asked by itself, and each question too: one that has fallen off the bus hides neither the others nor, of
  a GPU that does not answer one question, what it says to the rest.
- What NVML refuses becomes a word of `protocol.gpus.Reason`; nothing here raises NVMLError.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rbee_remote.protocol.gpus import Reason
from rbee_remote.system.gpu import Gpu, SilentGpu

MB = 10**6

#: By the constants of NVML's nvmlReturn_t.
_REASONS = {
    3: Reason.UNSUPPORTED,
    4: Reason.PERMISSION,
    8: Reason.POWER,
    9: Reason.NOT_LOADED,
    10: Reason.TIMEOUT,
    11: Reason.INTERRUPT,
    12: Reason.NO_LIBRARY,
    14: Reason.INFOROM,
    15: Reason.LOST,
    16: Reason.RESET,
    18: Reason.MISMATCH,
}

_EXCLUSIVE, _PROHIBITED = (1, 3), 2  # nvmlComputeMode_t: of a thread, of a process; no process at all

#: Names of GPUs that share the machine's RAM, for which NVML has no other sign: GB10 (DGX Spark), and the Jetsons.
#: Their drivers answer NVML_ERROR_NOT_SUPPORTED when asked for memory, as some that are merely unwell do.
_INTEGRATED = re.compile(r"\b(GB10|Orin|Thor|Xavier|Tegra|nvgpu)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why NVML as a whole tells nothing."""

    reason: Reason
    said: str


@dataclass(frozen=True, slots=True)
class Seen:
    """handle: NVML's, good while the library is open. whole: that of the GPU; another one for an instance of it.
    exclusive: its compute mode lets one process on it at a time."""

    gpu: Gpu
    handle: Any
    whole: Any
    exclusive: bool = False


T = TypeVar("T")


@contextlib.contextmanager
def opened() -> Iterator[Any]:
    """NVML, initialised; or why it is not to be had, as a Trouble."""
    try:
        import pynvml
    except ImportError:
        yield Trouble(Reason.NO_BINDING, "nvidia-ml-py is not installed")
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        yield Trouble(reason_of(error), str(error))
        return
    try:
        yield pynvml
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def reason_of(error: Any) -> Reason:
    """error: an NVMLError."""
    return _REASONS.get(error.value, Reason.UNKNOWN)


def asked(nvml: Any, question: Callable[..., T], *arguments: Any) -> T | None:
    """None where the driver, or this GPU, does not say."""
    try:
        return question(*arguments)
    except (nvml.NVMLError, UnicodeDecodeError):
        return None


def running(nvml: Any, handle: Any, kind: str = "Compute") -> dict[int, int | None]:
    """Bytes that processes hold, by pid; None for what the driver does not say. kind: Compute, or Graphics.

    By version: a driver older than the binding lacks the newest, for which the name without one raises an error that
    is no NVMLError.
    """
    for version in ("_v3", "_v2"):
        found = asked(nvml, getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses{version}"), handle)
        if found is not None:
            return {process.pid: process.usedGpuMemory for process in found}
    return {}


def gpus(nvml: Any, meminfo: Path = Path("/proc/meminfo")) -> Iterator[Seen | SilentGpu]:
    """All of the machine, or of the container, in the driver's order; instances in place of a GPU that has some."""
    for index in range(asked(nvml, nvml.nvmlDeviceGetCount) or 0):
        yield from _that_answers(nvml, index, meminfo)


def _that_answers(nvml: Any, index: int, meminfo: Path) -> Iterator[Seen | SilentGpu]:
    try:
        yield from _of_index(nvml, index, meminfo)
    except nvml.NVMLError as error:
        yield SilentGpu(index, reason_of(error), str(error))


def _of_index(nvml: Any, index: int, meminfo: Path) -> Iterator[Seen | SilentGpu]:
    """Raises NVMLError."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    mode = asked(nvml, nvml.nvmlDeviceGetComputeMode, handle)
    if mode == _PROHIBITED:
        yield SilentGpu(index, Reason.PROHIBITED)
        return
    instances = asked(nvml, nvml.nvmlDeviceGetMigMode, handle)
    if instances and instances[0]:
        yield from _instances(nvml, index, handle)
        return
    name = asked(nvml, nvml.nvmlDeviceGetName, handle) or "NVIDIA GPU"
    uuid = asked(nvml, nvml.nvmlDeviceGetUUID, handle) or ""
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free, integrated = int(memory.total), int(memory.free), False
    except nvml.NVMLError as error:
        # Of several, one that tells no memory is skipped; it is the RAM's where that is how such a GPU is built.
        unsupported = reason_of(error) is Reason.UNSUPPORTED
        integrated = unsupported and bool(_INTEGRATED.search(name))
        if not integrated:
            raise
        total, free = _ram(meminfo)
    reserved = mode in _EXCLUSIVE and bool(running(nvml, handle))
    free = 0 if reserved else free
    gpu = Gpu(index, name, total // MB, free // MB, uuid=uuid, integrated=integrated)
    yield Seen(replace(gpu, pci=_pci(nvml, handle), reserved=reserved), handle, handle, mode in _EXCLUSIVE)


def _instances(nvml: Any, index: int, whole: Any) -> Iterator[Seen | SilentGpu]:
    """Of a GPU in MIG mode, which by itself computes nothing. Raises NVMLError."""
    parent, pci, found = asked(nvml, nvml.nvmlDeviceGetUUID, whole) or "", _pci(nvml, whole), 0
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
        handle = asked(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex, whole, number)
        memory = handle and asked(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        if not memory:  # there may be fewer than the most, and some that this user may not use
            continue
        uuid = asked(nvml, nvml.nvmlDeviceGetUUID, handle) or ""
        name = asked(nvml, nvml.nvmlDeviceGetName, handle) or "MIG instance"
        total, free = int(memory.total) // MB, int(memory.free) // MB
        ids = (nvml.nvmlDeviceGetGpuInstanceId, nvml.nvmlDeviceGetComputeInstanceId)
        part = "/".join(str(asked(nvml, question, handle)) for question in ids)
        gpu = Gpu(index, name, total, free, uuid=uuid, instance=number, parent=parent, part=part, pci=pci)
        yield Seen(gpu, handle, whole)
        found += 1
    if not found:
        yield SilentGpu(index, Reason.NO_INSTANCE)


def _pci(nvml: Any, handle: Any) -> str:
    """As everybody else writes it: NVML's domain has eight digits."""
    found = asked(nvml, nvml.nvmlDeviceGetPciInfo, handle)
    said = found.busId if found else ""
    text = said.decode(errors="replace") if isinstance(said, bytes) else said
    domain, _, rest = text.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else ""


def _ram(meminfo: Path) -> tuple[int, int]:
    """(total, available) in bytes; available is what the kernel could free for a GPU that shares it, too."""
    sizes = {}
    with contextlib.suppress(OSError, ValueError):
        for line in meminfo.read_text().splitlines():
            key, _, value = line.partition(":")
            sizes[key] = int(value.split()[0]) * 1024
    return sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
