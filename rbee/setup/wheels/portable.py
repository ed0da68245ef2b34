"""Makes a wheel that was built on one machine fit to travel to others.

A wheel from llama.cpp's build holds every library up to three times, because a zip knows no links, and expects libgomp
on the node, which a machine without a compiler often lacks. What travels is half as large and brings libgomp along.
Which glibc it needs is read from the libraries themselves: the file's name does not say it.

A wheel can come from a node, so nothing in it is believed: sizes have bounds before anything is unpacked, no file of it
is ever in memory as a whole, reading the headers of its libraries has a bound too, of all together, and whatever goes
wrong is a NodeError. Even so it takes seconds to minutes: `stop` ends it (stoppable.py).
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rbee.base import archives
from rbee.base.errors import NodeError
from rbee.setup.base.platforms import Version
from rbee.setup.base.stoppable import Stop, StoppedError, never
from rbee_remote.protocol import ErrorCode

#: What a GNU/Linux has wherever there is a Python: libstdc++ comes with apt, dnf, zypper and pacman themselves.
_PROVIDED = re.compile(r"^(lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)|ld-linux.*|libc\.musl-\w+)\.so\.\d+$")
#: Libraries that belong to a GPU's driver or toolkit, which only that machine can provide.
_GPU = re.compile(r"^lib(cuda|cudart|cublas|cublasLt|nccl|nvrtc|hip\w*|amdhip64|rocblas|hipblas\w*|vulkan)\.so\b")
#: Of those, what no driver brings: Vulkan's loader, which looks for drivers. A node's own is used where there is one.
_BROUGHT = frozenset({"libvulkan.so.1"})
#: Beside libggml-base, whose RUNPATH is $ORIGIN: once it is loaded from there, the CPU variants find it by its name.
_BUNDLE_FOLDER = "llama_cpp/lib"
#: llama.cpp's own installation beside the bindings' one, and the third name of each of its libraries. What auditwheel
#: has put beside them goes by such names only.
_UNUSED = re.compile(r"^(include/|lib/)|^(?!llama_cpp_python\.libs/).*\.so\.\d+\.\d+\.\d+$")

_GLIBC = re.compile(r"GLIBC_[0-9.]{1,16}")

#: What a library may be called that is put into a wheel: a file of one folder.
_NAME = re.compile(r"(lib|ld-)[\w.+-]{1,80}\.so[\w.]{0,20}", re.ASCII)

#: Entries of a wheel, bytes of each unpacked, and of all; one for several GPUs has a quarter of that.
MOST_FILES = 10_000
LARGEST_FILE = 2**30
LARGEST_WHEEL = 4 * 2**30
#: Libraries that a wheel may want brought along; llama.cpp wants one.
MOST_MISSING = 16
#: Libraries in a wheel, reads that the headers of all together may take, and bytes that come of them: some five, six
#: and ten times what llama.cpp's take as they were built. The format knows no bound; as many reads take some 10 s.
MOST_LIBRARIES = 300
MOST_READS = 500_000
MOST_BYTES = 8 * 2**20

#: Where a library lies that a wheel lacks, by its name; None for one that cannot be had.
FindLibrary = Callable[[str], Path | None]


def needed_glibc(wheel: Path, stop: Stop = never) -> Version:
    """The oldest glibc that all libraries of a wheel run with; () for a wheel without any."""
    versions: list[Version] = [()]
    budget = Budget(stop)
    with opened(wheel) as archive:
        for _, library in libraries(archive, wheel.parent, budget):
            versions.append(glibc_of(library, budget))
    return max(versions)


def missing_libraries(wheel: Path, stop: Stop = never) -> set[str]:
    """Names of libraries to bring along: neither in the wheel nor on every GNU/Linux, GPU drivers left aside."""
    inside, needed = set[str](), set[str]()
    budget = Budget(stop)
    with opened(wheel) as archive:
        for name, library in libraries(archive, wheel.parent, budget):
            inside.add(Path(name).name)
            needed |= set(_needs(library, budget))
        return not_provided(needed - inside) | (_BROUGHT & needed - inside)


def not_provided(names: Set[str]) -> set[str]:
    """Those libraries that not every GNU/Linux has, GPU drivers left aside. Raises ValueError for too many."""
    missing = {name for name in names if not _PROVIDED.match(name) and not _GPU.match(name)}
    if len(missing) > MOST_MISSING or not all(map(_NAME.fullmatch, missing)):
        raise ValueError(f"its libraries need {len(missing)} others, such as {min(missing)[:80]!r}")
    return missing


def make_portable(wheel: Path, target: Path, find_library: FindLibrary, stop: Stop = never) -> None:
    """Write `wheel` to `target` without what nothing loads, and with the libraries that a node may lack.

    One that is so already stays the same bytes, which saves packing it again: seconds.
    A library that `find_library` does not know stays a need of the wheel; the node's verification tells.
    """
    extra = {name: path for name in sorted(missing_libraries(wheel, stop)) if (path := find_library(name))}
    part = target.with_name(f"{target.name}.part")
    with opened(wheel) as source:
        record = _record_name(source)
        files = [entry for entry in source.infolist() if not entry.is_dir()]
        names = {entry.filename for entry in files}
        kept = [entry for entry in files if not (_UNUSED.search(entry.filename) or _is_copy(entry.filename, names))]
    if not extra and kept == files:
        shutil.copyfile(wheel, part)
        part.rename(target)
        return
    with opened(wheel) as source, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as sink:
        rows = []
        for entry in kept:
            if entry.filename != record:
                with source.open(entry) as file:
                    rows.append(_add(sink, entry.filename, file, entry.external_attr, stop))
        for name, path in extra.items():
            with path.open("rb") as file:
                rows.append(_add(sink, f"{_BUNDLE_FOLDER}/{name}", file, 0o100755 << 16, stop))
        sink.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    part.rename(target)


def _is_copy(name: str, names: Set[str]) -> bool:
    """Whether it is a backend that lies in bin/ too, where ggml looks for it: one for GPUs is the most of a wheel."""
    return name.startswith("llama_cpp/lib/libggml-") and f"bin/{Path(name).name}" in names


def local_library(name: str) -> Path | None:
    """A library of this machine, as its compiler finds it; None where there is none."""
    words = ["cc", f"-print-file-name={name}"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    except OSError:
        return None
    path = Path(asked.stdout.strip())
    return path if asked.returncode == 0 and path.is_absolute() and path.is_file() else None


@contextmanager
def opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """A wheel whose directory is within bounds. What fails inside the context is a NodeError BOOTSTRAP_FAILED."""
    try:
        with archives.opened(wheel, archives.Bounds(MOST_FILES, LARGEST_FILE, LARGEST_WHEEL)) as archive:
            _check_names(archive)
            yield archive
    except (OSError, NodeError, StoppedError):
        raise
    except Exception as error:  # the readers of zip and ELF raise nearly everything over what is neither
        raise NodeError(
            ErrorCode.BOOTSTRAP_FAILED,
            f"the wheel {wheel.name} cannot be used: {str(error) or type(error).__name__}",
            hint="build it again; a node that keeps sending such wheels is broken or compromised",
        ) from error


def _check_names(archive: zipfile.ZipFile) -> None:
    """Nothing in a wheel leads out of the folder that it is unpacked to. Raises ValueError."""
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise ValueError("it has two files of one name")
    for entry in archive.infolist():
        name = entry.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
            raise ValueError(f"it has a file {name[:80]!r}")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"{name[:80]!r} is a link")


class Budget:
    """What going over a wheel once may take: bounds of each library alone would hold 10,000 times."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop
        self.bytes = MOST_BYTES
        self._reads = MOST_READS
        self._libraries = MOST_LIBRARIES

    def library(self) -> None:
        self._libraries -= 1
        if self._libraries < 0:
            raise ValueError(f"it has more than {MOST_LIBRARIES} libraries")

    def read(self, size: int) -> None:
        self.stop()
        self._reads -= 1
        self.bytes -= size
        if self._reads <= 0 or self.bytes <= 0:
            raise ValueError("the headers of its libraries are too large")


class Headers(io.RawIOBase):
    """A library for the reader of ELF, which follows whatever counts and offsets stand in it."""

    def __init__(self, library: IO[bytes], budget: Budget) -> None:
        self._library = library
        self._budget = budget

    def read(self, size: int = -1, /) -> bytes:
        data = self._library.read(self._budget.bytes if size < 0 else min(size, self._budget.bytes))
        self._budget.read(len(data))
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._library.seek(offset, whence)

    def tell(self) -> int:
        return self._library.tell()


def _record_name(archive: zipfile.ZipFile) -> str:
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
    return name


def _add(archive: zipfile.ZipFile, name: str, source: IO[bytes], attributes: int, stop: Stop) -> str:
    """Add a file; returns its line of the wheel's RECORD."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = attributes
    digest, size = hashlib.sha256(), 0
    with archive.open(entry, "w") as sink:
        for piece in archives.pieces(source):
            stop()
            digest.update(piece)
            size += len(piece)
            sink.write(piece)
    sha256 = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
    return f"{name},sha256={sha256},{size}"


def libraries(archive: zipfile.ZipFile, folder: Path, budget: Budget) -> Iterator[tuple[str, IO[bytes]]]:
    """Names and contents of the ELF files of a wheel that are for use on a node. Each is gone when the next comes.

    folder: on the disk, which /tmp is not always, for one library at a time.
    """
    for entry in archive.infolist():
        if ".so" not in Path(entry.filename).name or _UNUSED.search(entry.filename):
            continue
        with archive.open(entry) as packed, tempfile.TemporaryFile(dir=folder) as library:
            magic = packed.read(4)
            if magic != b"\x7fELF":
                continue
            budget.library()
            library.write(magic)
            for piece in archives.pieces(packed):
                budget.stop()
                library.write(piece)
            yield entry.filename, library


def glibc_of(library: IO[bytes], budget: Budget) -> Version:
    """The oldest glibc that a library runs with; () for one that needs none."""
    names = _version_needs(library, budget)
    return max((_numbers(name) for name in names if _GLIBC.fullmatch(name)), default=())


def _version_needs(library: IO[bytes], budget: Budget) -> list[str]:
    """The symbol versions a library asks others for, such as GLIBC_2.34."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    sections = ELFFile(Headers(library, budget)).iter_sections()
    needs = (section for section in sections if isinstance(section, GNUVerNeedSection))
    return [version.name for section in needs for _, versions in section.iter_versions() for version in versions]


def _needs(library: IO[bytes], budget: Budget) -> list[str]:
    """The file names of the libraries that a library links to."""
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    sections = ELFFile(Headers(library, budget)).iter_sections()
    dynamic = (section for section in sections if isinstance(section, DynamicSection))
    return [tag.needed for section in dynamic for tag in section.iter_tags("DT_NEEDED")]


def _numbers(version: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", version))
