"""Which GPUs a library has code for, read from the library: names and indexes only claim it. Nothing of it is run.

nvcc puts what it compiled into the section .nv_fatbin: containers, one for each source file, each with an entry for
each architecture, SASS or PTX. The layout is that of `fatBinaryHeader` (fatbinary.h of CUDA's toolkits) and of what
cuobjdump tells; it is the same in toolkits 11 to 13:

    container   u32 0xBA55ED50, u16 version 1, u16 bytes of this header, u64 bytes of the entries
    entry       u16 kind (1: PTX, 2: SASS), u16, u32 bytes of this header, u64 bytes of the code, …
                at 24: u16 minor, u16 major (of PTX: the version of its language), u32 architecture (89), …
                at 40: u32 flags; 0x100000 for "89a", 0x200000 for "100f"

A library can do for a GPU what all its containers can. Two kinds of containers tell nothing: one without entries, of a
file without kernels; and one that alone has no PTX, which is the device linker's, since files are compiled alike. It
has no kernel that PTX could be of.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rbee.setup.base.cuda import Architecture, Code
from rbee.setup.base.platforms import Version
from rbee.setup.base.stoppable import Stop, never
from rbee.setup.wheels import portable

_SECTION = ".nv_fatbin"
_MAGIC = 0xBA55ED50
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQQHHIQI")
_PTX, _SASS = 1, 2
_ONLY = {0x000000: "", 0x100000: "a", 0x200000: "f"}
#: The PTX language -> the CUDA it came with (PTX ISA, "Release notes"). A driver has to know that or a newer one.
_PTX_BY: dict[Version, Version] = {
    **{(8, minor): (12, minor) for minor in range(6)},
    **{(8, 6): (12, 7), (8, 7): (12, 8), (8, 8): (12, 9)},
    **{(9, minor): (13, minor) for minor in range(3)},
}
_UNKNOWN_PTX: Version = (99, 0)
#: Containers and entries of one library: llama.cpp has some 250 source files for CUDA.
_MOST = 50_000


def of_wheel(wheel: Path, stop: Stop = never) -> Code | None:
    """What a wheel's libraries have for NVIDIA's GPUs, None for nothing. Raises NodeError BOOTSTRAP_FAILED for what is
    no wheel, or is put together in a way that is not understood."""
    found: list[Code] = []
    budget = portable.Budget(stop)
    with portable.opened(wheel) as archive:
        for _, library in portable.libraries(archive, wheel.parent, budget):
            if code := of_library(portable.Headers(library, budget)):
                found.append(code)
        if len(found) > 1:
            raise ValueError("several of its libraries have code for CUDA")
    return found[0] if found else None


def of_library(library: IO[bytes] | portable.Headers) -> Code | None:
    """Raises ValueError for what is not understood, and what pyelftools does for what is no ELF."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    file: Any = ELFFile(library)  # pyelftools calls it a stream; it reads and seeks, no more
    section, needs = None, set[str]()
    for each in file.iter_sections():
        if each.name == _SECTION:
            section = each
        elif isinstance(each, DynamicSection):
            needs = {tag.needed for tag in each.iter_tags("DT_NEEDED")}
    if section is None:
        return None
    lines = {int(found[1]) for name in needs if (found := re.match(r"lib(?:cudart|cublas)\.so\.([0-9]{1,2})\b", name))}
    if len(lines) > 1:
        raise ValueError("its code for CUDA needs libraries of two toolkits")
    return _code(library, section["sh_offset"], section["sh_size"], next(iter(lines), 0))


def _code(library: IO[bytes] | portable.Headers, start: int, size: int, line: int) -> Code:
    sass: list[set[Architecture]] = []
    ptx: list[set[Architecture]] = []
    by: Version = ()
    for container in filter(None, _containers(library, start, start + size)):
        sass.append({architecture for kind, architecture, _ in container if kind == _SASS})
        ptx.append({architecture for kind, architecture, _ in container if kind == _PTX})
        by = max([by, *(_PTX_BY.get(version, _UNKNOWN_PTX) for kind, _, version in container if kind == _PTX)])
    if len(ptx) > 1 and sum(not each for each in ptx) == 1:
        ptx.remove(set())
    common_sass = frozenset(set.intersection(*sass)) if sass else frozenset[Architecture]()
    common_ptx = frozenset(set.intersection(*ptx)) if ptx else frozenset[Architecture]()
    # Where CUDA's libraries are linked in, their version is the one of the PTX.
    return Code(line or next(iter(by), 0), common_sass, common_ptx, by if common_ptx else ())


def _containers(
    library: IO[bytes] | portable.Headers, start: int, end: int
) -> Iterator[Sequence[tuple[int, Architecture, Version]]]:
    """The entries of each container between two places of a file: kind, architecture, version of the language."""
    left = _MOST
    while start + _CONTAINER.size <= end:
        library.seek(start)
        magic, version, header, size = _CONTAINER.unpack(_exactly(library, _CONTAINER.size))
        if magic == 0:  # between containers, which begin at multiples of 8
            start += 8
            continue
        if (magic, version) != (_MAGIC, 1) or header < _CONTAINER.size or start + header + size > end:
            raise ValueError("its code for CUDA is put together in a way that is not understood")
        entries, place, start = [], start + header, start + header + size
        while place + _ENTRY.size <= start:
            left -= 1
            if left < 0:
                raise ValueError(f"its code for CUDA has more than {_MOST} parts")
            library.seek(place)
            kind, _, header, length, _, minor, major, number, _, flags = _ENTRY.unpack(_exactly(library, _ENTRY.size))
            only = _ONLY.get(flags & 0x300000)
            if header < _ENTRY.size or only is None:
                raise ValueError("its code for CUDA is put together in a way that is not understood")
            entries.append((kind, Architecture((number // 10, number % 10), only), (major, minor)))
            place += header + length
        yield entries
        left -= 1


def _exactly(library: IO[bytes] | portable.Headers, size: int) -> bytes:
    data = library.read(size)
    if len(data) != size:
        raise ValueError("its code for CUDA ends too early")
    return data
