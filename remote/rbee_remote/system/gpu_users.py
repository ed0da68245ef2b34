"""Which processes hold memory of an NVIDIA GPU. Asked after something was ended: the driver frees it a moment later."""

from __future__ import annotations

import shutil
import subprocess

_TIMEOUT_S = 10.0


def gpu_pids() -> frozenset[int]:
    """Empty where there is no NVIDIA GPU, or none that tells. In a container the driver may name the host's pids."""
    try:
        import pynvml
    except ImportError:
        return _by_tool()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return frozenset()
    try:
        found = set()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found |= {process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        return frozenset(found)
    except pynvml.NVMLError:
        return frozenset()
    finally:
        pynvml.nvmlShutdown()


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
