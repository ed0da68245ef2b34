"""Makes a wheel that was built on one machine fit to travel to others.

A wheel from llama.cpp's build holds every library up to three times, because a zip knows no links, and expects libgomp
on the node, which a machine without a compiler often lacks. What travels is half as large and brings libgomp along.
Which glibc it needs is read from the libraries themselves: the file's name does not say it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rbee.runtime.platforms import Version

#: What a GNU/Linux has wherever there is a Python: libstdc++ comes with apt, dnf, zypper and pacman themselves.
_PROVIDED = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)|ld-linux.*)\.so\.\d+$")
#: Libraries that belong to a GPU's driver or toolkit, which only that machine can provide.
_GPU = re.compile(r"^lib(cuda|cudart|cublas|cublasLt|nccl|nvrtc|hip\w*|amdhip64|rocblas|hipblas\w*|vulkan)\.so\b")
#: Beside libggml-base, whose RUNPATH is $ORIGIN: once it is loaded from there, the CPU variants find it by its name.
_BUNDLE_FOLDER = "llama_cpp/lib"
#: llama.cpp's own installation beside the bindings' one, and the third name of each library.
_UNUSED = re.compile(r"^(include/|lib/)|\.so\.\d+\.\d+\.\d+$")

FindLibrary = Callable[[str], bytes | None]


def needed_glibc(wheel: Path) -> Version:
    """The oldest glibc that all libraries of a wheel run with; () for a wheel without any."""
    versions: list[Version] = [()]
    with zipfile.ZipFile(wheel) as archive:
        for _, data in _libraries(archive):
            versions += [_numbers(name) for name in _version_needs(data) if re.fullmatch(r"GLIBC_[\d.]+", name)]
    return max(versions)


def missing_libraries(wheel: Path) -> set[str]:
    """Names of libraries that are neither in the wheel nor on every GNU/Linux, GPU drivers left aside."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = list(_libraries(archive))
    inside = {Path(name).name for name, _ in libraries}
    needed = {name for _, data in libraries for name in _needs(data)}
    return {name for name in needed - inside if not _PROVIDED.match(name) and not _GPU.match(name)}


def make_portable(wheel: Path, target: Path, find_library: FindLibrary) -> None:
    """Write `wheel` to `target` without what nothing loads, and with the libraries that a node may lack.

    A library that `find_library` does not know stays a need of the wheel; the node's verification tells.
    """
    extra = {name: data for name in sorted(missing_libraries(wheel)) if (data := find_library(name))}
    part = target.with_name(f"{target.name}.part")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as sink:
        record = _record_name(source)
        kept = [entry for entry in source.infolist() if not entry.is_dir() and not _UNUSED.search(entry.filename)]
        rows = [
            _add(sink, entry.filename, source.read(entry), entry.external_attr)
            for entry in kept
            if entry.filename != record
        ]
        rows += [_add(sink, f"{_BUNDLE_FOLDER}/{name}", data, 0o100755 << 16) for name, data in extra.items()]
        sink.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    part.rename(target)


def local_library(name: str) -> bytes | None:
    """A library of this machine, as its compiler finds it."""
    asked = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = Path(asked.stdout.strip())
    return path.read_bytes() if asked.returncode == 0 and path.is_absolute() else None


def _record_name(archive: zipfile.ZipFile) -> str:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    return name


def _add(archive: zipfile.ZipFile, name: str, data: bytes, attributes: int) -> str:
    """Add a file; returns its line of the wheel's RECORD."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = attributes
    archive.writestr(entry, data)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}"


def _libraries(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the ELF files of a wheel that are for use on a node."""
    for name in archive.namelist():
        if (
            ".so" in Path(name).name
            and not _UNUSED.search(name)
            and (data := archive.read(name)).startswith(b"\x7fELF")
        ):
            yield name, data


def _version_needs(library: bytes) -> list[str]:
    """The symbol versions a library asks others for, such as GLIBC_2.34."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    sections = ELFFile(io.BytesIO(library)).iter_sections()
    needs = (section for section in sections if isinstance(section, GNUVerNeedSection))
    return [version.name for section in needs for _, versions in section.iter_versions() for version in versions]


def _needs(library: bytes) -> list[str]:
    """The file names of the libraries that a library links to."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    sections = ELFFile(io.BytesIO(library)).iter_sections()
    dynamic = (section for section in sections if isinstance(section, DynamicSection))
    return [tag.needed for section in dynamic for tag in section.iter_tags("DT_NEEDED")]


def _numbers(version: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", version))
