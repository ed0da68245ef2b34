"""What compiling llama.cpp for AMD's ROCm takes besides a compiler for C++, and for which GPUs it is compiled.

llama.cpp asks for ROCm 6.1 or newer with hipBLAS and rocBLAS (ggml/src/ggml-hip/CMakeLists.txt). They are gigabytes,
and tied to the driver's version, so that they stay the node's own: a wheel has only what was compiled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

#: Where AMD's own packages put all of it.
_ROOT = "/opt/rocm"

#: What any ROCm from 6.1 on compiles for: Vega, CDNA 1 to 3, RDNA 2 and 3. A wheel serves other nodes than its first.
_COMMON = ("gfx906", "gfx908", "gfx90a", "gfx942", "gfx1030", "gfx1100", "gfx1101", "gfx1102")
_ARCHITECTURE = re.compile(r"gfx[0-9a-f]{3,5}")

HOW_TO_INSTALL = "install ROCm 6.1 or newer with hipBLAS and rocBLAS for developers (AMD's package rocm-hip-sdk)"


def missing(env: Mapping[str, str] = os.environ, root: str = _ROOT) -> str | None:
    """A program that this machine lacks, None when it has all."""
    there = Path(env.get("ROCM_PATH") or root) / "bin/hipcc"
    return None if shutil.which("hipcc", path=env.get("PATH")) or os.access(there, os.X_OK) else "hipcc"


def flags(architectures: Iterable[str]) -> tuple[str, ...]:
    """CMake's, for the common GPUs and those of these kinds (gfx1201, …)."""
    known = filter(_ARCHITECTURE.fullmatch, architectures)
    return ("-DGGML_HIP=ON", f"-DGPU_TARGETS={';'.join(sorted({*_COMMON, *known}))}")
