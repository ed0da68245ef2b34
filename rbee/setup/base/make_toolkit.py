"""Makes a CUDA toolkit of wheels, where something is compiled: `python -I -c THIS FOLDER [SHA256 WHEEL]…`. It imports
the standard library alone, and works with Python 3.10.

A wheel's nvcc finds its parts beside it, as in NVIDIA's own packages. What a wheel cannot have is made here: programs
that may be run, links (a zip knows none), and a stand-in for the driver's library, which only a machine with a GPU has.

Rules
- What is unpacked has the SHA-256 that the keeper named.
- FOLDER must not exist; it has all of it at the end, in one place whatever the wheels call theirs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

PIECE = 2**20
#: Where in a wheel the toolkit lies: `nvidia/cu13/`; the header of threads and atomics and all of Thrust below it too.
ROOT = re.compile(r"nvidia/cu[0-9]+/(.+)")
#: 540 MB that nothing is linked to: the linker reads what libcublas says that it needs, and is content.
NOT_LINKED = re.compile(r"lib/(libcublasLt|libnvblas)\.so.*|lib/libcublas_static.*")
PROGRAMS = ("bin", "nvvm/bin")
#: What llama.cpp (ggml/src/ggml-cuda) calls of the driver; a worker finds it in the driver itself.
DRIVER = (
    *("cuDeviceGet", "cuDeviceGetAttribute", "cuGetErrorString", "cuMemAddressFree", "cuMemAddressReserve"),
    *("cuMemCreate", "cuMemGetAllocationGranularity", "cuMemMap", "cuMemRelease", "cuMemSetAccess", "cuMemUnmap"),
)


def main(folder: Path, *words: str) -> None:
    """words: of each wheel its SHA-256 and its path. Ends with a message on stderr."""
    folder.mkdir()
    for sha256, path in zip(words[::2], words[1::2]):  # noqa: B905 - as many of each
        unpack(Path(path), sha256, folder)
    for name in PROGRAMS:
        for program in (folder / name).glob("*"):
            program.chmod(0o700)
    (folder / "lib64").symlink_to("lib")
    for link, target in unversioned(folder / "lib"):
        link.symlink_to(target)
    make_driver(folder / "lib" / "stubs")
    if not (folder / "bin" / "nvcc").is_file():
        raise SystemExit("the wheels of CUDA's toolkit have no nvcc")


def unpack(path: Path, sha256: str, folder: Path) -> None:
    """What is unpacked is what was hashed: both read the one open file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(PIECE):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise SystemExit(f"{path} has another SHA-256 than it should have")
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                found = ROOT.fullmatch(entry.filename)
                if found is None or entry.is_dir() or NOT_LINKED.fullmatch(found[1]) or ".." in found[1].split("/"):
                    continue
                target = folder / found[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink, PIECE)


def unversioned(libraries: Path) -> Iterator[tuple[Path, str]]:
    """The links by which a linker finds them: libcudart.so -> libcudart.so.13."""
    for library in sorted(libraries.glob("lib*.so.*")):
        link = libraries / (library.name.partition(".so.")[0] + ".so")
        if not os.path.lexists(link):
            yield link, library.name


def make_driver(stubs: Path) -> None:
    """libcuda.so to link to. Its functions are never called, and would say CUDA_ERROR_NO_DEVICE."""
    stubs.mkdir(parents=True)
    code = "".join(f"int {name}(void) {{ return 100; }}\n" for name in DRIVER)
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "c++", "g++", "clang"))), "cc")
    library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(stubs / "libcuda.so")]
    words = [compiler, *library, "-xc", "-"]
    if subprocess.run(words, input=code.encode(), check=False).returncode:
        raise SystemExit("the compiler for C cannot make a library")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
