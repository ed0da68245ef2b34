"""The runtime's locked requirements, and what names a runtime."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import rbee
from rbee.setup.base.payload import package_folder
from rbee.setup.base.platforms import Target

#: What the runtime holds besides llama-cpp-python, on all nodes and on those that there are wheels for, what builds
#: llama-cpp-python, and what makes runtimes.
BASE = "base.txt"
CONSTRAINTS = "constraints.txt"
BUILD = "build.txt"
LLAMA = "llama-cpp-python.txt"
UV = "uv.txt"
#: What the keeper itself runs with where it was installed from a lock.
KEEPER = "keeper.txt"
KEY_LENGTH = 16
#: The wheels of llguidance, which is all that CONSTRAINTS names. A lock does not say what a hash is the hash of.
_CONSTRAINTS_FIT = frozenset(
    {"manylinux_2_31_x86_64", "manylinux_2_31_aarch64", "macosx_10_12_x86_64", "macosx_11_0_arm64"}
)


@dataclass(frozen=True, slots=True)
class Locked:
    """One line of a lock. hashes: "sha256:…" of each file that may stand for it."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def line(self) -> str:
        """As pip and uv read it, for one platform: without the marker."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash={value}" for value in self.hashes)])


def folder() -> Path:
    """Where the locks lie: in the installed package, or beside the code for nodes in a checkout."""
    installed = Path(rbee.__file__).parent / "requirements"
    return installed if installed.is_dir() else package_folder().parent / "requirements"


def read(name: str) -> list[Locked]:
    """Every line of a lock."""
    return parse((folder() / name).read_text(encoding="utf-8"))


def parse(text: str) -> list[Locked]:
    """Every line of a lock's text."""
    text = re.sub(r"\\\n", " ", text)
    return [_parse(line) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def for_target(name: str, target: Target) -> list[Locked]:
    """The lines of a lock that a platform needs."""
    from packaging.markers import Marker

    environment = target.markers()
    return [line for line in read(name) if not line.marker or Marker(line.marker).evaluate(environment)]


def for_runtime(target: Target) -> list[Locked]:
    """The lines of what a platform's runtime holds besides llama-cpp-python."""
    fits = not _CONSTRAINTS_FIT.isdisjoint(target.wheel_platforms())
    return for_target(BASE, target) + (for_target(CONSTRAINTS, target) if fits else [])


def llama() -> Locked:
    (line,) = read(LLAMA)
    return line


def keeper() -> list[Locked]:
    """The keeper's own lock: beside the others in an installed package, apart in a checkout."""
    installed = folder() / KEEPER
    path = installed if installed.is_file() else Path(rbee.__file__).parents[1] / "requirements" / KEEPER
    return parse(path.read_text(encoding="utf-8"))


def uv() -> Locked:
    (line,) = read(UV)
    return line


def runtime_key(target: Target, backend: str, flags: str, libraries: Sequence[Locked] = ()) -> str:
    """The name of a runtime: equal keys, equal contents. flags: how llama-cpp-python is built for the backend.
    libraries: what is brought along besides.

    The C library's version is part of it only where that decides what the runtime holds: one that works on a node goes
    on working after its upgrade.
    """
    lines = [line.line() for line in (*for_runtime(target), llama(), *libraries)]
    platform = [target.system, target.machine, target.libc, *map(str, target.python)]
    text = "\n".join([*lines, *platform, backend, flags])
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _parse(line: str) -> Locked:
    requirement, *hashes = re.split(r"\s+--hash=", line.strip())
    pinned, _, marker = requirement.partition(";")
    name, _, version = pinned.partition("==")
    return Locked(name.strip(), version.strip(), marker.strip(), tuple(value.strip() for value in hashes))
