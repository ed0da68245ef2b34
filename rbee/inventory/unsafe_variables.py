"""Variables that decide which code a process runs, or where it writes. An inventory sets none for this machine.

A list of what is refused, not of what is taken: people need what their drivers and libraries know, of which there is
more each month, and most of it is numbers.

On a node they are the business of whoever owns the account there: clusters need LD_LIBRARY_PATH. Here an inventory is
data, which people share, and starting a program is not what it is for.
"""

from __future__ import annotations

import re

#: What loads code into a worker, or names a folder that code is loaded from.
_STEERING = re.compile(
    # The loader and the C library: what glibc itself takes from no unprivileged caller, as far as it is about code.
    r"LD_.*|DYLD_.*|GLIBC_TUNABLES|GCONV_PATH|GETCONF_DIR|LOCPATH|NLSPATH|MALLOC_TRACE"
    # Python, and the libraries that llama-cpp-python and llama.cpp load by name.
    r"|PYTHON.*|\w+_CPP_LIB\w*|GGML_BACKEND_.*|GGML_.*PATH.*"
    # OpenSSL, OpenMP, NCCL and the drivers of GPUs have plugins; Vulkan looks for layers below XDG_* and HOME.
    r"|OPENSSL_.*|OMP_TOOL_LIBRARIES|NCCL_.*PLUGIN.*|\w+_INJECTION(?:32|64)?_PATH|HSA_TOOLS_.*|ROCP.*|VK_.*|OCL_ICD_.*"
    r"|XDG_.*|HOME"
    # Kernels for GPUs, which are code, where drivers keep those that they made, and files that name such things.
    r"|(?:ROCBLAS|HIPBLASLT|MIOPEN|TENSILE|HIP|CUDA|AMD_COMGR|SYCL)_\w*(?:PATH|DIR|LIB|DB)"
    r"|(?:NCCL|RCCL|UCX|CUDA)_\w*(?:CONF|CONFIG|TOPO|GRAPH)_?(?:FILE|PATH)"
    # Any file that the process may write, in place of a log, a dump or a profile.
    r"|\w+_(?:LOG|COREDUMP|DUMP|DEBUG|TRACE|PROFILE|OUTPUT)_?\w*(?:FILE|PATH|DIR)\w*|\w+_LOGDEST_\w+|\w+_COREDUMP_PIPE"
    # Programs that a worker starts, and the shell.
    r"|PATH|BASH_ENV|ENV|SHELLOPTS|BASHOPTS|IFS|PS4"
)


def is_unsafe(name: str) -> bool:
    """Whether the variable `name` decides which code a worker runs, or which files it writes."""
    return _STEERING.fullmatch(name) is not None
