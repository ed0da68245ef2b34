"""NVIDIA's GPUs by `nvidia-smi`, for a Python that has no binding for NVML: less, but enough to judge by."""

from __future__ import annotations

import re
import shutil
import subprocess

from rbee_remote.protocol.gpus import GpuReport, GpuSeen, Reason

_TIMEOUT_S = 10.0
#: In the order in which `parse` takes them. MiB.
FIELDS = (
    "index", "uuid", "name", "memory.total", "memory.free", "driver_version", "persistence_mode", "ecc.mode.current",
    "ecc.errors.uncorrected.volatile.total", "compute_mode",
)  # fmt: skip

_YES_OR_NO = {"Enabled": True, "Disabled": False}


def ask() -> GpuReport | None:
    """None where there is no nvidia-smi, or it says nothing that makes sense."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return GpuReport(reason=Reason.TIMEOUT.value, said=f"nvidia-smi does not end within {_TIMEOUT_S:.0f} s")
    except OSError:
        return None
    return parse(done.stdout.decode(errors="replace"))


def parse(output: str) -> GpuReport:
    """What nvidia-smi cannot do it says where the rows would be, and its words are kept."""
    lines = ([word.strip() for word in line.split(",")] for line in output.splitlines())
    rows = [row for row in lines if len(row) == len(FIELDS) and _number(row[0]) is not None]
    gpus = tuple(map(_gpu, rows))
    if gpus:
        return GpuReport(driver=rows[0][5], gpus=gpus)
    reason = Reason.MISMATCH if "version mismatch" in output else Reason.UNKNOWN
    reason = Reason.NOT_LOADED if "communicate with the NVIDIA driver" in output else reason
    return GpuReport(reason=reason.value, said=" ".join(output.split())[:200])


def _gpu(row: list[str]) -> GpuSeen:
    index, uuid, name, total, free, _, persistence, ecc, errors, mode = row
    return GpuSeen(
        id=f"CUDA{index}",
        index=int(index),
        name=name,
        vendor="nvidia",
        total_mb=_mb(total),
        free_mb=_mb(free),
        uuid=uuid if uuid.startswith("GPU-") else "",
        persistence=_YES_OR_NO.get(persistence),
        ecc=_YES_OR_NO.get(ecc),
        ecc_errors=_number(errors),
        exclusive=mode.startswith("Exclusive"),
    )


def _mb(mebibytes: str) -> int:
    """0 for [N/A] and [Not Supported]."""
    return (_number(mebibytes) or 0) * 2**20 // 10**6


def _number(text: str) -> int | None:
    """Eighteen digits hold any size; more is nonsense."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
