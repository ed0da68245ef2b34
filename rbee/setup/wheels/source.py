"""The locked source of llama-cpp-python, cut down to what a wheel for nodes is made of: a build takes half the time.

Rules
- The archive was checked against its lock before anything of it is read here. What is changed in it stands here alone.
- Where a file has no such place to change, nothing is built: then this file and the lock are not of one version.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from pathlib import Path

from rbee.base.errors import NodeError
from rbee.setup.base.stoppable import Stop
from rbee_remote.protocol import ErrorCode

#: Folders of llama.cpp that no library is made of. With the history that is 70 of 76 MB, which a node would be sent.
_LEFT_OUT = frozenset(
    {
        *("app", "benches", "ci", "common", "conversion", "docs", "examples", "gguf-py", "grammars", "media", "models"),
        *("pocs", "requirements", "scripts", "skills", "tests", "tools", "vendor"),
    }
)

#: CPU variants of ggml/src/CMakeLists.txt that no machine of today is faster with. What runs is chosen at run time from
#: what is there, so a machine that would take one of these takes the next best.
#: - No kernel uses AVX512_VBMI: cannonlake is skylakex, icelake cascadelake, and zen4 cooperlake, but for some 20 of
#:   266,000 instructions (objdump, gcc 12). Nor SME without KleidiAI: armv9.2 is armv8.6.
#: - piledriver is ivybridge with FMA, which only AMD's of 2012 to 2014 have without AVX2: it saves them 4 to 9 %
#:   (processor time of SmolLM2 135M, Q4_1 and Q4_0, single-threaded).
_VARIANTS_LEFT_OUT = ("piledriver", "cannonlake", "icelake", "zen4", "armv9.2_1", "armv9.2_2")
#: Small files of every CPU variant, which take longer to read the same headers than to compile: one unit in place of
#: six takes 1.9 s of processor time in place of 4.5 (skylakex, gcc 12). With the large ones in it nothing more is won.
#: amx/mmq.cpp does not compile behind them: it reads ggml-common.h as C, they as C++. Tried for x86 alone.
_ONE_UNIT = ("ggml-cpu", "hbm", "traits", "amx/amx", "tiled/tiled-kernel", "vec")
#: By file, below the archive's one folder: what to find there, and what to put in its place.
_CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    # llama-cpp-python has no flag for it: chat templates, downloads and argument parsing of llama.cpp's own programs
    "CMakeLists.txt": ((r"(set\(LLAMA_BUILD_COMMON) ON ", r"\1 OFF "),),
    "vendor/llama.cpp/CMakeLists.txt": ((r"\nadd_subdirectory\(vendor\)\n", "\n"),),
    # 42 units of libllama read the same headers: 133 s of processor time in place of 152 (gcc 12).
    "vendor/llama.cpp/src/CMakeLists.txt": (
        (
            r"(\ntarget_compile_features +\(llama PRIVATE cxx_std_17\)[^\n]*\n)",
            r"\1target_precompile_headers(llama PRIVATE "
            r"$<$<COMPILE_LANGUAGE:CXX>:${CMAKE_CURRENT_SOURCE_DIR}/models/models.h>)\n",
        ),
    ),
    "vendor/llama.cpp/ggml/src/ggml-cpu/CMakeLists.txt": (
        (
            r"(\n    target_sources\(\$\{GGML_CPU_NAME\} PRIVATE \$\{GGML_CPU_SOURCES\}\)\n)",
            '\\1    if (GGML_SYSTEM_ARCH STREQUAL "x86")\n'
            "    set_target_properties(${GGML_CPU_NAME} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)\n"
            f"    set_source_files_properties({' '.join(f'ggml-cpu/{name}.cpp' for name in _ONE_UNIT)}\n"
            "        PROPERTIES UNITY_GROUP small)\n    endif()\n",
        ),
    ),
    "vendor/llama.cpp/ggml/src/CMakeLists.txt": tuple(
        (rf"\n *ggml_add_cpu_backend_variant\({re.escape(name)}\s[^)]*\)", "") for name in _VARIANTS_LEFT_OUT
    ),
    # Settings of a validation layer, which builds for use have not, and which Vulkan's headers know since 2023 only:
    # Debian 12 has older ones.
    "vendor/llama.cpp/ggml/src/ggml-vulkan/ggml-vulkan.cpp": (
        (
            r"(?s)\n    std::vector<vk::LayerSettingEXT> settings = \{.{1,600}?, &layer_setting_info\);",
            r"\n    vk::InstanceCreateInfo instance_create_info("
            r"vk::InstanceCreateFlags{}, &app_info, layers, extensions);",
        ),
    ),
}


def cut_down(archive: Path, target: Path, stop: Stop) -> None:
    """Write to `target`, a gzipped tar, what of `archive` a wheel is made of. Raises NodeError BOOTSTRAP_FAILED."""
    with (
        tarfile.open(archive, "r:gz") as source,
        gzip.GzipFile(target, "wb", compresslevel=1, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as sink,
    ):
        for entry in source:
            stop()
            inside = entry.name.partition("/")[2]
            if not _is_left_out(inside):
                _copy(source, entry, inside, sink)


def _copy(source: tarfile.TarFile, entry: tarfile.TarInfo, inside: str, sink: tarfile.TarFile) -> None:
    content = source.extractfile(entry) if entry.isreg() else None
    if content and inside in _CHANGES:
        changed = _changed(inside, content.read().decode()).encode()
        entry.size, content = len(changed), io.BytesIO(changed)
    sink.addfile(entry, content)


def _is_left_out(inside: str) -> bool:
    parts = inside.split("/")
    return parts[0] == ".git" or (parts[:2] == ["vendor", "llama.cpp"] and len(parts) > 3 and parts[2] in _LEFT_OUT)


def _changed(inside: str, text: str) -> str:
    for pattern, replacement in _CHANGES[inside]:
        text, count = re.subn(pattern, replacement, text)
        if count != 1:
            raise NodeError(
                ErrorCode.BOOTSTRAP_FAILED,
                f"the source of llama.cpp is not the one that this rbee builds: {inside} has {count} places like "
                f"{pattern!r}",
                hint="use the locks that came with this rbee",
            )
    return text
