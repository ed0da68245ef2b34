"""Every GPU that ggml finds here, with its memory."""

from __future__ import annotations

import ctypes
from pathlib import Path

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol.ggml_gpus import GgmlAnswer, GgmlGpu
from rbee_remote.worker.llama import backends, log
from rbee_remote.worker.llama.backends import Device


class _Properties(ctypes.Structure):
    """ggml_backend_dev_props of ggml-backend.h; of what follows it is enough that there is room."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("description", ctypes.c_char_p),
        ("memory_free", ctypes.c_size_t),
        ("memory_total", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("device_id", ctypes.c_char_p),
        ("capabilities", ctypes.c_ubyte * 64),
    )


def device_list() -> GgmlAnswer:
    """Raises RemoteError BACKEND_UNAVAILABLE."""
    log.install()
    found = backends.load(llama._lib, Path(llama.__file__).parent.parent)
    return GgmlAnswer(tuple(_seen(llama._lib, device) for device in found if device.is_gpu))


def _seen(lib: ctypes.CDLL, device: Device) -> GgmlGpu:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    lib.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    lib.ggml_backend_dev_memory.restype = None
    lib.ggml_backend_dev_memory(ctypes.c_void_p(device.handle), ctypes.byref(free), ctypes.byref(total))
    # A driver that counts what it is not allowed to give as used says a free size that wraps around.
    sane = min(free.value, total.value)
    return GgmlGpu(device.id, device.name, device.backend, device.integrated, total.value, sane, _pci(lib, device))


def _pci(lib: ctypes.CDLL, device: Device) -> str:
    properties = _Properties()
    lib.ggml_backend_dev_get_props.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Properties)]
    lib.ggml_backend_dev_get_props.restype = None
    lib.ggml_backend_dev_get_props(ctypes.c_void_p(device.handle), ctypes.byref(properties))
    return (properties.device_id or b"").decode(errors="replace")
