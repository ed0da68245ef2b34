"""CUDA's toolkit and libraries as the package index has them: what of the locks is fetched, and for whom. Pure.

Line 13's compiler is whole there, in four packages. Of line 12's there is ptxas alone, so that a build for it takes an
nvcc that is installed.
"""

from __future__ import annotations

import re
from dataclasses import replace

from rbee.setup.base import cuda, requirements
from rbee.setup.base.platforms import Target

#: The line whose compiler can be fetched.
MAJOR = 13
#: The oldest glibc that its packages are for.
_GLIBC = (2, 27)
#: What a worker loads, as opposed to what compiles.
_LIBRARIES = re.compile(r"nvidia[-_](cublas|cuda[-_]runtime)([-_]cu12)?")
_PYTHON = (3, 12)

HOW_TO_INSTALL = (
    "install a CUDA toolkit that is not newer than the driver's CUDA, with nvcc on PATH; for GPUs since Turing (2018) "
    "and driver 580 or newer rbee fetches one by itself on Linux with glibc 2.27"
)


def has_wheels(target: Target) -> bool:
    """Whether the package index has a toolkit that compiles for a machine, on one of its kind."""
    line = cuda.line(target)
    fits = target.system == "Linux" and target.libc == "glibc" and target.libc_version >= _GLIBC
    return fits and line is not None and line.major == MAJOR


def compiles_on(builder: Target, target: Target) -> bool:
    """Whether it has one that runs on `builder` and compiles for the GPUs and the driver of `target`."""
    return has_wheels(replace(builder, cuda=target.cuda, gpus=target.gpus))


def compiles_anywhere(target: Target, backend: str) -> bool:
    """Whether a machine with a compiler for C++ is all that a build takes. What Vulkan, ROCm and CUDA 12 need besides
    is not known of a node before it builds."""
    return backend == "cpu" or (backend == "cuda" and has_wheels(target))


def compiler(major: int = MAJOR) -> list[requirements.Locked]:
    """The lines of the lock that only a build needs."""
    return [line for line in _lock(major) if not _LIBRARIES.fullmatch(line.name)]


def libraries(major: int) -> list[requirements.Locked]:
    """The lines of the lock whose libraries a worker loads; a build links to them, too."""
    return [line for line in _lock(major) if _LIBRARIES.fullmatch(line.name)]


def brought(target: Target) -> list[requirements.Locked]:
    """Those that a runtime on a machine may have been given: of each line that its driver knows, and it lacks."""
    majors = sorted(cuda.brought(target) - target.cudart)
    return [line for major in majors for line in libraries(major)]


def fetched_for(target: Target) -> Target:
    """Whose wheels are fetched: the same ones for every Linux of a processor's kind, whatever its Python."""
    return Target("Linux", target.machine, "glibc", _GLIBC, _PYTHON)


def _lock(major: int) -> list[requirements.Locked]:
    return requirements.read(next(line.lock for line in cuda.LINES if line.major == major))
