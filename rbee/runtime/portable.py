"""Makes a wheel that was built on one machine fit to travel to others.

A wheel from llama.cpp's build holds every library up to three times, because a zip knows no links, and expects libgomp
on the node, which a machine without a compiler often lacks. What travels is half as large and brings libgomp along.
Which glibc it needs is read from the libraries themselves: the file's name does not say it.

A wheel can come from a node, so nothing in it is believed: sizes have bounds before anything is unpacked, reading a
library has one too, and whatever goes wrong is a NodeError.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rbee.errors import NodeError
from rbee.runtime.platforms import Version
from rbee_remote.protocol import ErrorCode

#: What a GNU/Linux has wherever there is a Python: libstdc++ comes with apt, dnf, zypper and pacman themselves.
_PROVIDED = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)|ld-linux.*)\.so\.\d+$")
#: Libraries that belong to a GPU's driver or toolkit, which only that machine can provide.
_GPU = re.compile(r"^lib(cuda|cudart|cublas|cublasLt|nccl|nvrtc|hip\w*|amdhip64|rocblas|hipblas\w*|vulkan)\.so\b")
#: Beside libggml-base, whose RUNPATH is $ORIGIN: once it is loaded from there, the CPU variants find it by its name.
_BUNDLE_FOLDER = "llama_cpp/lib"
#: llama.cpp's own installation beside the bindings' one, and the third name of each library.
_UNUSED = re.compile(r"^(include/|lib/)|\.so\.\d+\.\d+\.\d+$")

#: What a library may be called that is put into a wheel: a file of one folder.
_NAME = re.compile(r"(lib|ld-)[\w.+-]{1,80}\.so[\w.]{0,20}", re.ASCII)

#: Entries of a wheel, bytes of each unpacked, and of all; one for several GPUs has a quarter of that.
MOST_FILES = 10_000
LARGEST_FILE = 2**30
LARGEST_WHEEL = 4 * 2**30
#: Libraries that a wheel may want brought along; llama.cpp wants one.
MOST_MISSING = 16
#: Reads that the headers of one library may take: ten times what the largest here takes. The format knows no bound.
MOST_READS = 200_000

FindLibrary = Callable[[str], bytes | None]


def needed_glibc(wheel: Path) -> Version:
    """The oldest glibc that all libraries of a wheel run with; () for a wheel without any."""
    versions: list[Version] = [()]
    with _opened(wheel) as archive:
        for _, data in _libraries(archive):
            versions += [_numbers(name) for name in _version_needs(data) if re.fullmatch(r"GLIBC_[\d.]+", name)]
    return max(versions)


def missing_libraries(wheel: Path) -> set[str]:
    """Names of libraries that are neither in the wheel nor on every GNU/Linux, GPU drivers left aside."""
    inside, needed = set[str](), set[str]()
    with _opened(wheel) as archive:
        for name, data in _libraries(archive):
            inside.add(Path(name).name)
            needed |= set(_needs(data))
        missing = {name for name in needed - inside if not _PROVIDED.match(name) and not _GPU.match(name)}
        if len(missing) > MOST_MISSING or not all(map(_NAME.fullmatch, missing)):
            raise ValueError(f"its libraries want {len(missing)} others, such as {min(missing)[:80]!r}")
    return missing


def make_portable(wheel: Path, target: Path, find_library: FindLibrary) -> None:
    """Write `wheel` to `target` without what nothing loads, and with the libraries that a node may lack.

    A library that `find_library` does not know stays a need of the wheel; the node's verification tells.
    """
    extra = {name: data for name in sorted(missing_libraries(wheel)) if (data := find_library(name))}
    part = target.with_name(f"{target.name}.part")
    with _opened(wheel) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as sink:
        record = _record_name(source)
        kept = [entry for entry in source.infolist() if not entry.is_dir() and not _UNUSED.search(entry.filename)]
        rows = [
            _add(sink, entry.filename, _read(source, entry), entry.external_attr)
            for entry in kept
            if entry.filename != record
        ]
        rows += [_add(sink, f"{_BUNDLE_FOLDER}/{name}", data, 0o100755 << 16) for name, data in extra.items()]
        sink.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    part.rename(target)


def local_library(name: str) -> bytes | None:
    """A library of this machine, as its compiler finds it."""
    words = ["cc", f"-print-file-name={name}"]
    asked = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    path = Path(asked.stdout.strip())
    return path.read_bytes() if asked.returncode == 0 and path.is_absolute() else None


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel whose directory is within bounds. What fails inside the context is a NodeError BOOTSTRAP_FAILED."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = archive.infolist()
            sizes = [entry.file_size for entry in entries]
            if len(sizes) > MOST_FILES or max(sizes, default=0) > LARGEST_FILE or sum(sizes) > LARGEST_WHEEL:
                raise ValueError(f"{len(sizes)} files of {sum(sizes)} bytes are more than such a wheel has")
            if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
                raise ValueError("it is packed in a way that wheels are not")
            yield archive
    except (OSError, NodeError):
        raise
    except Exception as error:  # the readers of zip and ELF raise nearly everything over what is neither
        raise NodeError(
            ErrorCode.BOOTSTRAP_FAILED,
            f"the wheel {wheel.name} cannot be used: {str(error) or type(error).__name__}",
            hint="build it anew; a node that goes on sending such wheels is not well, or not honest",
        ) from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """A file of the wheel. Without a size, zipfile would unpack up to 2 GB of what claims to be a few bytes."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


class _Headers(io.BytesIO):
    """A library for the reader of ELF, which follows whatever counts and offsets stand in it."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MOST_READS:
            raise ValueError("the headers of a library have no end")
        return super().read(size)


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
    for entry in archive.infolist():
        name = entry.filename
        if (
            ".so" in Path(name).name
            and not _UNUSED.search(name)
            and (data := _read(archive, entry)).startswith(b"\x7fELF")
        ):
            yield name, data


def _version_needs(library: bytes) -> list[str]:
    """The symbol versions a library asks others for, such as GLIBC_2.34."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    sections = ELFFile(_Headers(library)).iter_sections()
    needs = (section for section in sections if isinstance(section, GNUVerNeedSection))
    return [version.name for section in needs for _, versions in section.iter_versions() for version in versions]


def _needs(library: bytes) -> list[str]:
    """The file names of the libraries that a library links to."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    sections = ELFFile(_Headers(library)).iter_sections()
    dynamic = (section for section in sections if isinstance(section, DynamicSection))
    return [tag.needed for section in dynamic for tag in section.iter_tags("DT_NEEDED")]


def _numbers(version: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", version))
