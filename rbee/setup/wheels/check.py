"""Whether a wheel that somebody else built runs on a node, found out from the wheel itself before it is used.

Nothing of it is run: its libraries are read. A build of rbee's own has every CPU variant inside, and ggml takes the
best at run time; others are made for one kind of processor, and end with "illegal instruction" on an older one. Such a
ggml knows what it was compiled for: `ggml_cpu_has_avx2()` and its kin are two instructions, "the answer is 1; return".
Where anything cannot be told, the answer is no.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rbee.base.errors import NodeError
from rbee.setup.base import cuda, requirements
from rbee.setup.base.platforms import Target, Version
from rbee.setup.base.stoppable import Stop, never
from rbee.setup.wheels import cuda_code, portable
from rbee_remote.protocol import ErrorCode

#: Where the bindings look for libllama.
_LIBLLAMA = "llama_cpp/lib/libllama.so"
_BINDINGS = "llama_cpp/llama_cpp.py"
_VERSION = "llama_cpp/__init__.py"
_LARGEST_TEXT = 2**20
#: Elf64_Sym, and what it calls the section of a symbol that is wanted, not had. No C function has a longer name.
_SYMBOL = struct.Struct("<IBBHQQ")
_UNDEFINED = 0
_LONGEST_NAME = 100
#: What a worker asks of ggml itself (rbee_remote/worker/llama/backends.py).
_OF_GGML = frozenset(
    {"ggml_backend_load_all_from_path", "ggml_backend_dev_count", "ggml_backend_dev_get", "ggml_backend_dev_type"}
    | {"ggml_backend_dev_name", "ggml_backend_dev_description", "ggml_backend_dev_backend_reg", "ggml_backend_reg_name"}
    | {"ggml_backend_dev_memory"}
)

#: Of x86-64 since 2009 and since 2013 (the psABI's v2 and v3): a compiler that may use one of them uses all.
_V2 = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
#: ggml's questions -> what the kernel calls what a processor needs for a yes.
_FLAGS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "sse3": ("pni",),
        "ssse3": _V2,
        "avx": (*_V2, "avx"),
        "f16c": (*_V2, "avx", "f16c"),
        "fma": (*_V2, "avx", "fma"),
        "avx2": _V3,
        "bmi2": _V3,
        "avx_vnni": (*_V3, "avx_vnni"),
        "avx512": _V4,
        "avx512_vbmi": (*_V4, "avx512vbmi", "avx512_vbmi2", "gfni"),
        "avx512_vnni": (*_V4, "avx512_vnni"),
        "avx512_bf16": (*_V4, "avx512_bf16"),
        "amx_int8": (*_V4, "amx_tile", "amx_int8"),
    },
    "aarch64": {
        "neon": ("asimd",),
        "arm_fma": ("asimd",),
        "fp16_va": ("asimd", "asimdhp", "fphp"),
        "dotprod": ("asimd", "asimddp", "atomics"),
        "matmul_int8": ("asimd", "asimddp", "atomics", "i8mm"),
        "sve": ("asimd", "asimddp", "atomics", "sve"),
        "sme": ("asimd", "asimddp", "atomics", "sme"),
    },
}
#: A function that returns 0 or 1, as compilers write it: after an optional landing pad, the instructions.
_ANSWERS: dict[str, tuple[bytes, dict[bytes, bool]]] = {
    "x86_64": (b"\xf3\x0f\x1e\xfa", {b"\x31\xc0\xc3": False, b"\xb8\x01\x00\x00\x00\xc3": True}),
    "aarch64": (
        b"\x5f\x24\x03\xd5",
        {b"\x00\x00\x80\x52\xc0\x03\x5f\xd6": False, b"\x20\x00\x80\x52\xc0\x03\x5f\xd6": True},
    ),
}
_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}


@dataclass(slots=True)
class _Seen:
    """All that the libraries of a wheel say. fixed: what each ggml that is used on any processor was compiled for;
    variants: likewise of those of which ggml takes one that runs."""

    glibc: Version = ()
    names: set[str] = field(default_factory=set)
    needs: set[str] = field(default_factory=set)
    exported: set[str] = field(default_factory=set)
    llama: set[str] = field(default_factory=set)
    fixed: list[frozenset[str]] = field(default_factory=list)
    variants: list[frozenset[str]] = field(default_factory=list)


def needed_cpu(wheel: Path, target: Target, stop: Stop = never) -> frozenset[str]:
    """What a processor has to be capable of for a wheel of the locked version that runs on `target`.

    Raises NodeError NODE_UNSUPPORTED that says why it does not run there, and BOOTSTRAP_FAILED for what is no wheel.
    """
    if target.system != "Linux":
        return frozenset()  # Apple's compilers make one kind of code, for all of its own processors
    seen = _Seen()
    budget = portable.Budget(stop)
    with portable.opened(wheel) as archive:
        _check_version(archive)
        for name, library in portable.libraries(archive, wheel.parent, budget):
            _look(name, portable.Headers(library, budget), target.machine, seen)
            seen.glibc = max(seen.glibc, portable.glibc_of(library, budget))
        bound = set(re.findall(r'^@ctypes_function\(\s*"(\w+)"', _text(archive, _BINDINGS), re.MULTILINE))
        _check_libraries(target, seen)
    if lacking := sorted((bound - seen.llama) | (_OF_GGML - seen.exported)) or (not bound and ["llama_decode"]):
        raise _no(f"its libraries lack {lacking[0][:60]} ({len(lacking)} of what a worker calls)")
    if not (seen.fixed or seen.variants):
        raise _no("it has no ggml that computes on the processor")
    least = min(seen.variants, key=len) if seen.variants else frozenset[str]()
    cpu = least.union(*seen.fixed)
    if missing := sorted(cpu - target.cpu):
        raise _no(f"it is compiled for processors with {', '.join(missing)}, which the node's is not known to have")
    return cpu


def check_cuda(wheel: Path, target: Target, stop: Stop = never) -> None:
    """Raises NodeError NODE_UNSUPPORTED for a wheel without code for all of a node's GPUs."""
    code = cuda_code.of_wheel(wheel, stop)
    why = cuda.obstacle(code, target) if code else "it has no code for CUDA"
    if why:
        raise _no(why)


def local_libraries(target: Target) -> portable.FindLibrary:
    """Where libraries come from that a wheel may lack: this machine, where they are of the node's kind."""
    same = target.runs_what_is_built_on(replace(Target.here(), libc_version=()))
    return portable.local_library if same else lambda _: None


def _check_version(archive: zipfile.ZipFile) -> None:
    wanted = requirements.llama().version
    (metadata,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
    said = re.search(r"^Version: (.*)$", _text(archive, metadata), re.MULTILINE)
    own = re.search(r"""^__version__ = ["'](.*)["']""", _text(archive, _VERSION), re.MULTILINE)
    for found in (said, own):
        if found is None or found[1].strip() != wanted:
            raise _no(f"it is version {found[1].strip()[:20] if found else 'unknown'}, not {wanted}")


def _check_libraries(target: Target, seen: _Seen) -> None:
    needed = seen.glibc
    if (target.libc == "glibc" and needed > target.libc_version) or (target.libc != "glibc" and needed):
        raise _no(f"it needs glibc {'.'.join(map(str, needed))}, this is {target.name}")
    found_here = local_libraries(target)
    missing = portable.not_provided(seen.needs - seen.names)
    if lacking := sorted(name for name in missing if found_here(name) is None):
        raise _no(f"it needs {lacking[0]}, and does not bring it")
    for library in sorted(seen.needs - seen.names):
        found = re.fullmatch(r"libcudart\.so\.(\d+)(?:\.\d+)*", library)
        if found and int(found[1]) not in target.cudart | cuda.brought(target):
            raise _no(f"it needs {library} of a CUDA toolkit, which neither the node nor rbee has for its driver")


def _look(name: str, library: portable.Headers, machine: str, seen: _Seen) -> None:
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile
    from elftools.elf.sections import SymbolTableSection

    file = ELFFile(library)  # pyelftools calls it a stream; it reads and seeks, no more
    if _MACHINES.get(file["e_machine"]) != machine:
        raise _no(f"{name} is for another processor ({str(file['e_machine'])[:30]})")
    seen.names.add(Path(name).name)
    symbols: dict[str, int] = {}
    for section in file.iter_sections():
        if isinstance(section, DynamicSection):
            seen.needs |= {tag.needed for tag in section.iter_tags("DT_NEEDED")}
        elif isinstance(section, SymbolTableSection) and section["sh_type"] == "SHT_DYNSYM":
            symbols |= _exported(section.data(), section.stringtable.data())
    seen.exported |= symbols.keys()
    if name == _LIBLLAMA:
        seen.llama |= symbols.keys()
    if "ggml_cpu_has_neon" in symbols:
        flags = frozenset(_compiled_for(file, library, symbols, machine))
        (seen.variants if "ggml_backend_score" in symbols else seen.fixed).append(flags)


def _exported(table: bytes, strings: bytes) -> dict[str, int]:
    """The C functions of a library, with their addresses. pyelftools would take seconds for all there are."""
    found = {}
    for name, _, _, section, address, _ in _SYMBOL.iter_unpack(table[: len(table) // _SYMBOL.size * _SYMBOL.size]):
        text = strings[name : name + _LONGEST_NAME].partition(b"\0")[0]
        if section != _UNDEFINED and text.startswith((b"ggml_", b"llama_")):
            found[text.decode(errors="replace")] = address
    return found


def _compiled_for(file: Any, library: portable.Headers, symbols: dict[str, int], machine: str) -> Iterator[str]:
    """The kernel's words for what ggml says that it uses."""
    landing, answers = _ANSWERS[machine]
    for question, flags in _FLAGS[machine].items():
        address = symbols.get(f"ggml_cpu_has_{question}")
        places = [] if address is None else list(file.address_offsets(address))
        if not places:
            raise _no("its ggml does not say which processors it was compiled for")
        library.seek(places[0])
        code = library.read(16).removeprefix(landing)
        answer = next((yes for start, yes in answers.items() if code.startswith(start)), None)
        if answer is None:
            raise _no(f"its ggml does not say in a way that is understood whether it uses {question}")
        if answer:
            yield from flags


def _text(archive: zipfile.ZipFile, name: str) -> str:
    with archive.open(name) as file:
        return file.read(_LARGEST_TEXT).decode(errors="replace")


def _no(why: str) -> NodeError:
    return NodeError(ErrorCode.NODE_UNSUPPORTED, why)
