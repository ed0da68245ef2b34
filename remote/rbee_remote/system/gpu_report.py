"""`gpus`: what this node's GPUs are and how they fare, printed as a `GpuReport`. Changes nothing.

Runs with whatever Python is there: without nvidia-ml-py, which a runtime brings, `nvidia-smi` is asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rbee_remote.protocol import encode
from rbee_remote.protocol.gpus import GpuReport, GpuSeen, GpuSilent, Reason
from rbee_remote.system import gpu_kernel, gpu_nvml, gpu_smi
from rbee_remote.system.gpu import Gpu, SilentGpu
from rbee_remote.system.gpu_holders import holders
from rbee_remote.system.gpu_sysfs import amd_gpus
from rbee_remote.system.gpu_visible import granted_by_pbs, visible
from rbee_remote.system.time_limit import TimeLimit

#: Below the keeper's patience, so that it is told the rest: the bus, and the kernel's log.
_TIMEOUT_S = 15.0


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="rbee_remote gpus", description=__doc__).parse_args(argv)
    sys.stdout.write(json.dumps(encode(report(os.environ))) + "\n")
    return 0


def report(env: Mapping[str, str]) -> GpuReport:
    """env: by which what is visible is judged."""
    found = TimeLimit[GpuReport](_TIMEOUT_S).ask(_by_driver)
    if found is None:
        found = GpuReport(reason=Reason.TIMEOUT.value, said=f"no answer within {_TIMEOUT_S:.0f} s")
    seen, silent = _amd()
    shown = visible([_value(gpu) for gpu in (*found.gpus, *seen)], env, granted_by_pbs(env))
    kept = {(gpu.vendor, gpu.id) for gpu in shown.gpus}
    lines = gpu_kernel.log_lines()
    return GpuReport(
        driver=found.driver,
        loaded=gpu_kernel.loaded_module(),
        cuda=found.cuda,
        reason=found.reason,
        said=found.said,
        gpus=tuple(replace(gpu, visible=(gpu.vendor, gpu.id) in kept) for gpu in (*found.gpus, *seen)),
        silent=(*found.silent, *silent),
        xids=gpu_kernel.xids(lines or ()),
        log_read=lines is not None,
        limits=shown.limits,
        on_bus=gpu_kernel.on_bus(),
    )


def _by_driver() -> GpuReport:
    with gpu_nvml.opened() as nvml:
        found = _told(nvml)
    return found if found.reason != Reason.NO_BINDING else gpu_smi.ask() or found


def _value(gpu: GpuSeen) -> Gpu:
    return Gpu(gpu.index, gpu.name, gpu.total_mb, gpu.free_mb, gpu.vendor, gpu.uuid, gpu.instance, gpu.parent)


def _told(nvml: Any) -> GpuReport:
    """Of NVIDIA's driver."""
    if isinstance(nvml, gpu_nvml.Trouble):
        return GpuReport(reason=nvml.reason.value, said=nvml.said)
    found = list(gpu_nvml.gpus(nvml))
    version = gpu_nvml.asked(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2) or 0
    return GpuReport(
        driver=gpu_nvml.asked(nvml, nvml.nvmlSystemGetDriverVersion) or "",
        cuda=f"{version // 1000}.{version % 1000 // 10}" if version else "",
        gpus=tuple(_seen(nvml, each) for each in found if isinstance(each, gpu_nvml.Seen)),
        silent=_silent([each for each in found if isinstance(each, SilentGpu)]),
    )


def _seen(nvml: Any, seen: gpu_nvml.Seen) -> GpuSeen:
    """An instance has the health of its GPU, and holders of its own."""
    ecc = gpu_nvml.asked(nvml, nvml.nvmlDeviceGetEccMode, seen.whole)
    kind = (nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    persistence = gpu_nvml.asked(nvml, nvml.nvmlDeviceGetPersistenceMode, seen.whole)
    return _plain(
        seen.gpu,
        ecc=None if ecc is None else bool(ecc[0]),
        ecc_errors=gpu_nvml.asked(nvml, nvml.nvmlDeviceGetTotalEccErrors, seen.whole, *kind),
        persistence=None if persistence is None else bool(persistence),
        holders=holders(nvml, seen.handle),
        exclusive=seen.exclusive,
    )


def _amd() -> tuple[list[GpuSeen], tuple[GpuSilent, ...]]:
    found = list(amd_gpus())
    seen = [_plain(gpu) for gpu in found if isinstance(gpu, Gpu)]
    return seen, _silent([gpu for gpu in found if isinstance(gpu, SilentGpu)])


def _silent(gpus: Sequence[SilentGpu]) -> tuple[GpuSilent, ...]:
    return tuple(GpuSilent(gpu.index, getattr(gpu.reason, "value", gpu.reason), gpu.said) for gpu in gpus)


def _plain(gpu: Gpu, **health: Any) -> GpuSeen:
    return GpuSeen(
        id=gpu.id,
        index=gpu.index,
        name=gpu.name,
        vendor=gpu.vendor,
        total_mb=gpu.total_mb,
        free_mb=gpu.free_mb,
        uuid=gpu.uuid,
        integrated=gpu.integrated,
        instance=gpu.instance,
        parent=gpu.parent,
        **health,
    )
