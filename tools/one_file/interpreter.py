"""Copies the Python that runs this, so that the copy works wherever it is put: its library, and what it is linked to.

What of the C library it needs is not copied: that is what makes a system too old for it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

#: What belongs to the C library, which cannot be brought along.
_LIBC = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|util|resolv|nsl))\.so\.\d+$")
#: Parts of the standard library that nothing of rbee uses; modules that are linked to what few systems have.
_UNUSED = frozenset({
    "__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "sitecustomize.py", "test", "tests", "tkinter", "turtledemo", "turtle.py",
})  # fmt: skip
_UNUSED_MODULES = re.compile(
    r"(_crypt|_ctypes_test|_curses.*|_dbm|_gdbm|_test.*|_tkinter|_uuid|_xx.*|nis|ossaudiodev|readline|xx.*)\.cpython-"
)
_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)")
#: Debugging symbols, half of a Python from source; of binutils, which come with every compiler.
_STRIP = ["strip", "--strip-unneeded"]


def copy(target: Path, patchelf: Path) -> None:
    """Into `target`, which must not exist. patchelf: the program of that name."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    program = target / "bin" / name
    program.parent.mkdir(parents=True)
    shutil.copy(Path(sys.base_prefix, "bin", name).resolve(), program)
    for link in ("python", "python3"):
        program.with_name(link).symlink_to(name)
    library = target / "lib" / name
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=_unused)
    modules = sorted((library / "lib-dynload").glob("*.so"))
    sources = [Path(sys.base_prefix, "bin", name), *Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")]
    shared = _linked(source for source in sources if not _UNUSED_MODULES.match(source.name))
    for path in shared:
        shutil.copy(path.resolve(), target / "lib" / path.name)
    _point(patchelf, program, "$ORIGIN/../lib")
    for module in modules:
        _point(patchelf, module, "$ORIGIN/../..")
    for path in shared:
        _point(patchelf, target / "lib" / path.name, "$ORIGIN")


def programs(folder: Path) -> Iterator[Path]:
    """The programs and libraries below `folder`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def needed_glibc(folder: Path) -> tuple[int, int]:
    """The oldest glibc that everything below `folder` runs with."""
    needed = (2, 5)
    for path in programs(folder):
        with path.open("rb") as file:
            try:
                sections = list(ELFFile(file).iter_sections())
            except ELFError:
                continue
            for section in sections:
                if isinstance(section, GNUVerNeedSection):
                    names = [aux.name for _, wanted in section.iter_versions() for aux in wanted]
                    found = [_GLIBC.fullmatch(found_name) for found_name in names]
                    needed = max([needed, *((int(match[1]), int(match[2])) for match in found if match)])
    return needed


def _unused(folder: str, names: list[str]) -> set[str]:
    del folder
    return {name for name in names if name in _UNUSED or name.startswith("config-") or _UNUSED_MODULES.match(name)}


def _linked(paths: Iterable[Path]) -> list[Path]:
    """The libraries that these are linked to, and those in turn, without the C library's."""
    found = {}
    for path in paths:
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for line in said.splitlines():
            library, _, place = line.strip().partition(" => ")
            if place.startswith("not found"):
                sys.exit(f"{path} needs {library}, which is not there")
            if place.startswith("/") and not _LIBC.match(library):
                found[library] = Path(os.path.dirname(place.split(" (")[0]), library)  # noqa: PTH120
    return [found[name] for name in sorted(found)]


def _point(patchelf: Path, path: Path, folder: str) -> None:
    """Have the libraries that `path` is linked to looked for in `folder`, which is relative to its own."""
    path.chmod(0o755)
    subprocess.run([*_STRIP, path], check=True)
    subprocess.run([patchelf, "--set-rpath", folder, path], check=True)
