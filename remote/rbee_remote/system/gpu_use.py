"""How busy the GPUs are that this process may use, and how much of their memory is taken: NVIDIA's by NVML, AMD's by
the kernel. Of others nobody tells."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee_remote.protocol import GpuLoad
from rbee_remote.system import gpu_nvml
from rbee_remote.system.gpu import Gpu, SilentGpu
from rbee_remote.system.gpu_awake import StayAwake
from rbee_remote.system.gpu_sysfs import amd_gpus
from rbee_remote.system.gpu_visible import granted_by_pbs, visible
from rbee_remote.system.time_limit import TimeLimit


@dataclass(frozen=True, slots=True)
class _Used:
    gpu: Gpu
    use: float | None


#: A driver that starts eight GPUs anew takes some seconds.
_DRIVERS: TimeLimit[list[_Used]] = TimeLimit(20.0)
_stay_awake = StayAwake(10.0)


def gpu_loads(env: Mapping[str, str] | None = None, sys: Path = Path("/sys")) -> tuple[GpuLoad, ...]:
    """Those that the environment leaves, the process's own for None; none while a driver does not answer. Blocks."""
    env = os.environ if env is None else env
    found = _DRIVERS.ask(lambda: list(_used(sys))) or []
    use = {each.gpu: each.use for each in found}
    shown = visible([each.gpu for each in found], env, granted_by_pbs(env)).gpus
    return tuple(
        GpuLoad(gpu.id, gpu.name, gpu.total_mb, max(0, gpu.total_mb - gpu.free_mb), use.get(gpu)) for gpu in shown
    )


def _used(sys: Path) -> Iterator[_Used]:
    _stay_awake()
    with gpu_nvml.opened() as nvml:
        if not isinstance(nvml, gpu_nvml.Trouble):
            for seen in gpu_nvml.gpus(nvml):
                if isinstance(seen, gpu_nvml.Seen):
                    yield _Used(seen.gpu, _nvidia_use(nvml, seen.handle))
    for gpu in amd_gpus(sys):
        if not isinstance(gpu, SilentGpu):
            yield _Used(gpu, _amd_use(gpu, sys))


def _nvidia_use(nvml: Any, handle: Any) -> float | None:
    """Of an instance of a GPU that MIG divides the driver says nothing."""
    rates = gpu_nvml.asked(nvml, nvml.nvmlDeviceGetUtilizationRates, handle)
    return None if rates is None else min(int(rates.gpu), 100) / 100


def _amd_use(gpu: Gpu, sys: Path) -> float | None:
    try:
        said = (sys / "bus/pci/devices" / gpu.pci / "gpu_busy_percent").read_text().strip() if gpu.pci else ""
    except OSError:
        return None
    return min(int(said), 100) / 100 if said.isascii() and said.isdigit() else None
