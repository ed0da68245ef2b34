"""What compiling llama.cpp for Vulkan takes besides a compiler for C++, and whether this machine has it.

CMake looks for the same: FindVulkan for glslc, the headers and the loader, SPIRV-Headers by its package file. A Vulkan
SDK that $VULKAN_SDK names has all of it. No GPU is needed, nor a driver.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rbee.setup.wheels.portable import local_library

#: Prefixes that CMake and compilers search by themselves.
_PREFIXES = ("/usr", "/usr/local", "/opt/homebrew")
_HEADER = "include/vulkan/vulkan.hpp"
_SPIRV = "SPIRV-HeadersConfig.cmake"
#: Below a prefix: where distributions put package files; the second one has the architecture in its middle.
_CMAKE_FOLDERS = ("share/cmake/SPIRV-Headers", "lib/*/cmake/SPIRV-Headers", "lib*/cmake/SPIRV-Headers")

#: By Debian, Fedora, Arch and Alpine, in their names for glslc, the headers with the loader, and SPIR-V's headers.
HOW_TO_INSTALL = (
    "apt install glslc libvulkan-dev spirv-headers "
    "(dnf: glslc vulkan-headers vulkan-loader-devel spirv-headers-devel; "
    "pacman: shaderc vulkan-headers vulkan-icd-loader spirv-headers; "
    "apk: shaderc vulkan-headers vulkan-loader-dev spirv-headers), or set VULKAN_SDK to the folder of LunarG's SDK"
)


def missing(env: Mapping[str, str] = os.environ, prefixes: Sequence[str] = _PREFIXES) -> str | None:
    """The first thing that this machine lacks, as a program's or file's name; None when it has all."""
    sdk = env.get("VULKAN_SDK", "")
    path = f"{sdk}/bin{os.pathsep}{env.get('PATH', os.defpath)}" if sdk else env.get("PATH")
    roots = [Path(root) for root in (sdk, *env.get("CMAKE_PREFIX_PATH", "").split(os.pathsep), *prefixes) if root]
    if shutil.which("glslc", path=path) is None:
        return "glslc"
    if not any((root / _HEADER).is_file() for root in roots):
        return "vulkan/vulkan.hpp"
    if not (any(map(_has_loader, roots)) or local_library("libvulkan.so")):
        return "libvulkan.so"
    if not any(map(_has_spirv, roots)):
        return _SPIRV
    return None


def _has_loader(root: Path) -> bool:
    return any((root / name).exists() for name in ("lib/libvulkan.so", "lib64/libvulkan.so", "lib/libvulkan.dylib"))


def _has_spirv(root: Path) -> bool:
    return any(True for folder in _CMAKE_FOLDERS for _ in root.glob(f"{folder}/{_SPIRV}"))
