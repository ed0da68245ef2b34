"""Vulkan's loader, libvulkan.so.1, which finds a GPU's driver: the node's own, else the one that the wheel brings.

ggml's library for Vulkan wants it by its name alone, so whichever is in the process by then is the one it gets. A
system's loader goes first: it knows where that system's drivers are, and is as new as they are. musl knows a library
that was loaded by its path under no name: there the node's own is the only one.
"""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

_log = logging.getLogger("rbee.llama")

_NAME = "libvulkan.so.1"


def load(site_packages: Path) -> str:
    """Have a loader in this process; the name or path it came by, "" where there is none: then there is no Vulkan."""
    names = (_NAME, str(site_packages / "llama_cpp" / "lib" / _NAME))
    found = next(filter(_loads, names), "")
    if not found:
        _log.warning("no Vulkan: this system has no %s, and the runtime brought none that works here", _NAME)
    return found


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError as error:
        _log.debug("%s: %s", name, error)
        return False
    return True
