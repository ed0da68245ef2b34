"""CUDA's libraries that lie in a runtime: loaded before llama.cpp, whose library for CUDA wants them by their names.

Whatever of that name is in the process by then is what it gets, so no variable has to say where they are. The keeper
runs this file on a node too, where it looks whether a new runtime works.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

#: Below a runtime; in it a folder for each file they came from, named by its SHA-256.
FOLDER = "libraries"
#: Each needs those before it.
_ORDER = ("libcudart.so.*", "libcublasLt.so.*", "libcublas.so.*")


def preload(runtime: Path) -> list[str]:
    """The paths of those that were loaded. One that cannot be is left out: llama.cpp then says what it lacks."""
    loaded = []
    for pattern in _ORDER:
        for path in sorted(runtime.glob(f"{FOLDER}/*/{pattern}")):
            try:
                ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            loaded.append(str(path))
    return loaded
