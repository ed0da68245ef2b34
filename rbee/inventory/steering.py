"""Variables that decide which code a process runs. An inventory sets none of them for this machine.

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
    r"|PYTHON.*|LLAMA_CPP_LIB.*|GGML_BACKEND_.*|GGML_.*PATH.*"
    # OpenSSL, OpenMP, NCCL and the drivers of GPUs have plugins; Vulkan looks for layers below XDG_* and HOME.
    r"|OPENSSL_.*|OMP_TOOL_LIBRARIES|NCCL_.*PLUGIN.*|\w+_INJECTION(?:32|64)?_PATH|HSA_TOOLS_.*|ROCP.*|VK_.*|OCL_ICD_.*"
    r"|XDG_.*|HOME"
    # Programs that a worker starts, and the shell.
    r"|PATH|BASH_ENV|ENV|SHELLOPTS|BASHOPTS|IFS|PS4"
)


def steers(name: str) -> bool:
    """Whether the variable `name` decides which code a worker runs."""
    return _STEERING.fullmatch(name) is not None
