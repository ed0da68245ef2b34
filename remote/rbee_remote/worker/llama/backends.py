"""ggml's backends and devices, by ctypes: the bindings of llama-cpp-python do not cover ggml's registry.

`lib` is the handle of libllama. A symbol looked up through it is found in the very libggml that libllama is linked
to; a `libggml.so` beside it can be a second copy whose registry llama.cpp never sees.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee_remote.protocol import ErrorCode, RemoteError, WorkerOptions
from rbee_remote.system.gpu_choice import choose_gpus, used_ones
from rbee_remote.worker.llama import vulkan_loader

_TYPE_CPU, _TYPE_GPU, _TYPE_IGPU = 0, 1, 2  # enum ggml_backend_dev_type in ggml-backend.h

#: ggml's name for a backend where it is not ours in another case.
_OUR_NAMES = {"mtl": "metal", "hip": "rocm"}


@dataclass(frozen=True, slots=True)
class Device:
    """handle: ggml_backend_dev_t. backend: cpu, cuda, metal, … name: what its maker calls it. id: ggml's own name for
    it, CUDA0. uuid: ggml does not tell; the hive, which does know, has a worker see none but its own GPUs."""

    handle: int
    kind: int
    backend: str
    name: str
    id: str = ""
    uuid: str = ""

    @property
    def is_gpu(self) -> bool:
        return self.kind in (_TYPE_GPU, _TYPE_IGPU)

    @property
    def integrated(self) -> bool:
        """Its memory is the machine's."""
        return self.kind == _TYPE_IGPU


def load(lib: ctypes.CDLL, site_packages: Path) -> list[Device]:
    """Make the backends of the installed wheel known to ggml; every device there is, the CPU among them.

    A portable wheel brings its backends as libraries in `bin/`, one per CPU generation, of which ggml takes the best
    that runs here. In a native one they are linked in, and loading others beside them would register them twice.
    """
    if not any(device.kind == _TYPE_CPU for device in known_devices(lib)):
        for folder in (site_packages / "bin", site_packages / "llama_cpp" / "lib"):
            if any(folder.glob("*ggml-cpu*")):
                if any(folder.glob("*ggml-vulkan*")):
                    vulkan_loader.load(site_packages)
                lib.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
                lib.ggml_backend_load_all_from_path(bytes(folder))
                break
    found = known_devices(lib)
    if not any(device.kind == _TYPE_CPU for device in found):
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            "llama.cpp has no CPU backend that runs on this processor",
            details={"searched": str(site_packages)},
        )
    return found


def known_devices(lib: ctypes.CDLL) -> list[Device]:
    """Every device that ggml knows of now."""
    lib.ggml_backend_dev_count.restype = ctypes.c_size_t
    lib.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    lib.ggml_backend_dev_get.restype = ctypes.c_void_p
    return [_describe(lib, lib.ggml_backend_dev_get(index)) for index in range(lib.ggml_backend_dev_count())]


def choose(available: Sequence[Device], options: WorkerOptions) -> list[Device]:
    """The GPUs to load onto, all of one backend, in the order they are wanted; empty for the CPU.

    Raises RemoteError BACKEND_UNAVAILABLE naming what there is, and what `choose_gpus` does.
    """
    gpus = _of_backend(available, options)
    return list(choose_gpus(gpus, options)) if gpus else []


def _of_backend(available: Sequence[Device], options: WorkerOptions) -> list[Device]:
    backend = options.backend
    gpus = [device for device in available if device.is_gpu]
    if not options.uses_gpus or (backend == "auto" and not gpus):
        return []
    name = gpus[0].backend if backend == "auto" else backend
    chosen = [device for device in gpus if device.backend == name]
    if not chosen:
        there = sorted({device.backend for device in available})
        raise RemoteError(
            ErrorCode.BACKEND_UNAVAILABLE,
            f"backend {backend} is not available here, only {', '.join(there)}",
            hint='set backend to one of these, or to "auto", for the node in the inventory',
            details={"backend": backend, "available": there},
        )
    return list(used_ones(chosen))


def _describe(lib: ctypes.CDLL, handle: int) -> Device:
    pointer = ctypes.c_void_p(handle)
    for function in (lib.ggml_backend_dev_description, lib.ggml_backend_dev_name, lib.ggml_backend_reg_name):
        function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_char_p
    lib.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_backend_reg.argtypes = [ctypes.c_void_p]
    lib.ggml_backend_dev_backend_reg.restype = ctypes.c_void_p
    backend = lib.ggml_backend_reg_name(lib.ggml_backend_dev_backend_reg(pointer)).decode().lower()
    return Device(
        handle=handle,
        kind=lib.ggml_backend_dev_type(pointer),
        backend=_OUR_NAMES.get(backend, backend),
        name=lib.ggml_backend_dev_description(pointer).decode(errors="replace"),
        id=lib.ggml_backend_dev_name(pointer).decode(errors="replace"),
    )
