"""AMD's GPUs as the kernel tells of them: no library is needed, and none is loaded.

Rules
- ROCm counts the nodes of KFD's topology that compute, in that order; so do the indices here.
- A node that this process may not read, as in a control group that hides the GPU, is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from rbee_remote.protocol.gpus import Reason
from rbee_remote.system.gpu import Gpu, SilentGpu

MB = 10**6


def amd_gpus(sys: Path = Path("/sys"), dev: Path = Path("/dev")) -> Iterator[Gpu | SilentGpu]:
    """An APU, which the topology shows with processor cores in the same node, is integrated; its memory is not told."""
    nodes = sys / "class/kfd/kfd/topology/nodes"
    found = sorted((int(node.name), node) for node in _folders(nodes) if node.name.isdigit())
    index = 0
    for _, node in found:
        properties = dict(line.partition(" ")[::2] for line in _read(node / "properties").splitlines())
        if _number(properties.get("simd_count", "")):
            yield _gpu(index, properties, _read(node / "name"), sys, dev)
            index += 1


def _gpu(index: int, properties: dict[str, str], name: str, sys: Path, dev: Path) -> Gpu | SilentGpu:
    render = f"renderD{_number(properties.get('drm_render_minor', ''))}"
    device = sys / "class/drm" / render / "device"
    for path in (dev / "kfd", dev / "dri" / render):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            return SilentGpu(index, Reason.PERMISSION, str(path))
    total, used = (_number(_read(device / f"mem_info_vram_{what}")) for what in ("total", "used"))
    unique = _number(properties.get("unique_id", ""))
    return Gpu(
        index,
        _read(device / "product_name") or f"AMD GPU {name}".strip(),
        total // MB,
        max(0, total - used) // MB,
        vendor="amd",
        uuid=f"GPU-{unique:016x}" if unique else "",
        integrated=_number(properties.get("cpu_cores_count", "")) > 0,
        pci=_pci(device),
    )


def _pci(device: Path) -> str:
    """What the kernel's link to the device leads to."""
    name = device.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", name) else ""


def _folders(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
