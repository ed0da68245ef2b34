"""Which processes hold memory of an NVIDIA GPU. Asked after something was ended: the driver frees it a moment later."""

from __future__ import annotations

import shutil
import subprocess

from rbee_remote.protocol.gpus import Reason
from rbee_remote.system import gpu_nvml
from rbee_remote.system.time_limit import TimeLimit

_TIMEOUT_S = 10.0
_DRIVER: TimeLimit[frozenset[int]] = TimeLimit(_TIMEOUT_S)


def gpu_pids() -> frozenset[int]:
    """Empty where there is no NVIDIA GPU, or none that tells in time. In a container the driver may name the host's
    pids."""
    return _DRIVER.ask(_ask) or frozenset()


def _ask() -> frozenset[int]:
    with gpu_nvml.opened() as nvml:
        if not isinstance(nvml, gpu_nvml.Trouble):
            seen = [each for each in gpu_nvml.gpus(nvml) if isinstance(each, gpu_nvml.Seen)]
            return frozenset(pid for each in seen for pid in gpu_nvml.running(nvml, each.handle))
        unasked = nvml.reason is Reason.NO_BINDING
    return _by_tool() if unasked else frozenset()


def _by_tool() -> frozenset[int]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return frozenset()
    command = [tool, "--query-compute-apps=pid", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(int(line) for line in done.stdout.split() if line.isdigit())
