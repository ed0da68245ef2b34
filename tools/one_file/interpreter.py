"""Chooses a Python and copies it, so that the copy works wherever it is put: its library, and what it is linked to.

What of the C library it needs is not copied: that is what makes a system too old for it. So of the Pythons that are
there the one is taken that needs the oldest: python-build-standalone (`uv python install`) is made for glibc 2.17.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
#: What needs no version of it in particular.
_ANY_GLIBC = (2, 5)
#: Debugging symbols, half of a Python from source; of binutils, which come with every compiler.
_STRIP = ["strip", "--strip-unneeded"]


#: What a Python says of itself.
_QUESTION = """
import json, platform, sys, sysconfig
print(json.dumps([platform.python_version(), sys.base_prefix, sysconfig.get_path("stdlib")]))
"""
OLDEST = (3, 11)


@dataclass(frozen=True)
class Interpreter:
    """An installed Python. prefix: where it is, not a virtual environment made with it. stdlib: its library."""

    version: str
    prefix: Path
    stdlib: Path

    @classmethod
    def of(cls, program: str | Path) -> Interpreter:
        """Raises ValueError for what does not run, or is older than rbee can use."""
        try:
            asked = subprocess.run([program, "-I", "-c", _QUESTION], capture_output=True, text=True, check=False)
        except OSError as error:
            raise ValueError(f"{program} cannot be run: {error.strerror}") from error
        if asked.returncode:
            raise ValueError(f"{program} is no Python that works: {(asked.stderr.splitlines() or [''])[-1]}")
        version, prefix, stdlib = json.loads(asked.stdout)
        if tuple(map(int, version.split(".")[:2])) < OLDEST:
            raise ValueError(f"rbee needs Python 3.{OLDEST[1]} or newer; {program} is {version}")
        return cls(version, Path(prefix), Path(stdlib))

    @property
    def name(self) -> str:
        return "python" + ".".join(self.version.split(".")[:2])

    @property
    def program(self) -> Path:
        return self.prefix / "bin" / self.name

    @functools.cached_property
    def linked(self) -> list[Path]:
        """The libraries that it and the modules that are copied are linked to, without the C library's."""
        modules = (path for path in self.stdlib.glob("lib-dynload/*.so") if not _UNUSED_MODULES.match(path.name))
        return _linked([self.program, *modules])

    @functools.cached_property
    def glibc(self) -> tuple[int, int]:
        """The oldest glibc that it runs with."""
        modules = (path for path in self.stdlib.glob("lib-dynload/*.so") if not _UNUSED_MODULES.match(path.name))
        return max(map(_needed_by, [self.program.resolve(), *modules, *self.linked]))


def choose(uv: Path) -> Interpreter:
    """The one here that needs the oldest glibc; of several the newest. uv: the program, which knows its own, too."""
    words = [str(uv), "python", "list", "--only-installed", "--offline", "--no-config", "--output-format", "json"]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = {}
    for each in (Path(sys.executable), *(entry["path"] for entry in json.loads(said))):
        try:
            python = Interpreter.of(each)
        except ValueError:
            continue
        if python.stdlib.is_dir() and python.program.exists():
            found[python.prefix, python.version] = python
    return min(found.values(), key=lambda each: (each.glibc, [-int(part) for part in re.findall(r"\d+", each.version)]))


def copy(python: Interpreter, target: Path, patchelf: Path) -> None:
    """Into `target`, which must not exist. patchelf: the program of that name."""
    program = target / "bin" / python.name
    program.parent.mkdir(parents=True)
    shutil.copy(python.program.resolve(), program)
    for link in ("python", "python3"):
        program.with_name(link).symlink_to(python.name)
    library = target / "lib" / python.name
    shutil.copytree(python.stdlib, library, ignore=_unused)
    for path in python.linked:
        shutil.copy(path.resolve(), target / "lib" / path.name)
    _point(patchelf, program, "$ORIGIN/../lib")
    for module in sorted((library / "lib-dynload").glob("*.so")):
        _point(patchelf, module, "$ORIGIN/../..")
    for path in python.linked:
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
    return max(map(_needed_by, programs(folder)), default=_ANY_GLIBC)


def _needed_by(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        try:
            sections = [part for part in ELFFile(file).iter_sections() if isinstance(part, GNUVerNeedSection)]
        except ELFError:
            return _ANY_GLIBC
        names = [aux.name for part in sections for _, wanted in part.iter_versions() for aux in wanted]
    found = [_GLIBC.fullmatch(name) for name in names]
    return max([_ANY_GLIBC, *((int(match[1]), int(match[2])) for match in found if match)])


def _unused(folder: str, names: list[str]) -> set[str]:
    del folder
    return {name for name in names if name in _UNUSED or name.startswith("config-") or _UNUSED_MODULES.match(name)}


def _linked(paths: Iterable[Path]) -> list[Path]:
    """The libraries that these are linked to, and those in turn, without the C library's."""
    found = {}
    for path in paths:
        said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for line in said.splitlines():
            wanted, _, place = line.strip().partition(" => ")
            if place.startswith("not found"):
                sys.exit(f"{path} needs {wanted}, which is not there")
            # what is wanted by its path (python-build-standalone: $ORIGIN/../lib/...) has no arrow
            library = Path(wanted.split(" (")[0])
            folder = os.path.dirname((place or wanted).split(" (")[0])  # noqa: PTH120
            if folder.startswith("/") and not _LIBC.match(library.name):
                found[library.name] = Path(folder, library.name)
    return [found[name] for name in sorted(found)]


def _point(patchelf: Path, path: Path, folder: str) -> None:
    """Have the libraries that `path` is linked to looked for in `folder`, which is relative to its own."""
    path.chmod(0o755)
    subprocess.run([*_STRIP, path], check=True)
    subprocess.run([patchelf, "--set-rpath", folder, path], check=True)
