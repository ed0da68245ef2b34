"""What lies in the wheel cache, and for whom. Only looked at: nothing here makes, changes or removes anything.

Rules
- One thing that cannot be read is told of as such, and the others are listed all the same.
- A folder that a lock names is told by its name, which is made from the lock's lines, a platform and a Python: those of
  all platforms are tried. One that none of them gives is of another lock.
- No wheel is read: when it was last read says when it was last used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path

from rbee.base.errors import ConfigError
from rbee.setup.base import cuda, requirements
from rbee.setup.base.platforms import Target, Version
from rbee.setup.base.requirements import Locked
from rbee.setup.wheels import toolkit
from rbee.setup.wheels.llama_wheel import LlamaWheel
from rbee.setup.wheels.locked import folder_name
from rbee_remote.protocol import OLDEST_PYTHON

#: The newest versions that a folder's platform is looked for among: of Python 3, glibc 2, musl 1 and macOS.
_PYTHON, _GLIBC, _MUSL, _MACOS = 20, 80, 5, 40
#: The oldest that rbee can be on.
_OLDEST_MACOS, _OLDEST_MACOS_10, _OLDEST_GLIBC = 11, 9, 5


class Kind(StrEnum):
    """What something in the cache is; the value is what the user reads."""

    LLAMA = "llama.cpp"
    BASE = "packages"
    BUILD = "build tools"
    UV = "uv"
    CUDA = "CUDA"
    HALF_MADE = "half made"


class State(StrEnum):
    """GOOD: in use by this rbee. OLD: of another lock. DAMAGED: nothing can be made of it. DOUBTED: cannot be read, or
    others may have written it. HALF_MADE: being made, or left where that was ended."""

    GOOD = ""
    OLD = "old"
    DAMAGED = "damaged"
    DOUBTED = "not used"
    HALF_MADE = "half made"


@dataclass(frozen=True, slots=True)
class Cached:
    """path: the folder. size: bytes on disk. last_used: Unix seconds, None where the disk does not keep that.

    why: of its state, a clause. target: whom it is for, None where that is not known; of a llama.cpp without a Python.
    wheel: of a llama.cpp that can be read.
    """

    kind: Kind
    path: Path
    size: int
    last_used: float | None
    state: State = State.GOOD
    why: str = ""
    target: Target | None = None
    wheel: LlamaWheel | None = None

    @property
    def version(self) -> str:
        """Of llama-cpp-python or uv; "" for many packages."""
        if self.kind is Kind.UV and self.state is State.GOOD:
            return requirements.uv().version
        return self.wheel.version if self.wheel else ""

    def fits(self, target: Target, backend: str) -> bool:
        """Whether a bootstrap of such a node would take it, whoever made it.

        Of a processor that nothing is known of (the registry keeps nothing) it is believed: all since 2013 can enough.
        """
        if self.state is not State.GOOD:
            return False
        if self.wheel:
            wheel = self.wheel if target.cpu else replace(self.wheel, cpu="")
            return wheel.fits(target, backend)
        if self.kind is Kind.CUDA:
            return backend == "cuda" and self.target is not None and self.target.machine == target.machine
        return self.path.name == _name_of(self.kind, target)


def contents(root: Path) -> list[Cached]:
    """All that rbee has made in the cache, by kind. Empty where there is no cache. Raises ConfigError for one that
    cannot be read."""
    try:
        names = _names(root)
        llama = _names(root / "llama") if "llama" in names else []
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"the wheel cache {root} cannot be read: {error.strerror}") from error
    found = [_llama(root / "llama" / name) for name in llama if not name.startswith(".")]
    for prefix, kind in _LOCKED.items():
        found += [_locked(kind, root / name) for name in names if re.fullmatch(rf"{prefix}-[0-9a-f]{{16}}", name)]
    half_made = [root / name for name in names if name.startswith(".staging-")]
    half_made += [root / "llama" / name for name in llama if name.startswith(".adding-")]
    return found + [_seen(Kind.HALF_MADE, path, State.HALF_MADE) for path in half_made]


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _llama(folder: Path) -> Cached:
    doubt = partial(_seen, Kind.LLAMA, folder)
    try:
        wheel = LlamaWheel.read(folder / "wheel.json")
        is_there = wheel.is_in(folder)
    except ConfigError as error:
        if "reason" in error.details:
            return doubt(State.DAMAGED, "its wheel.json cannot be read")
        return doubt(State.DOUBTED, error.message)
    except FileNotFoundError:
        return doubt(State.DAMAGED, "it has no wheel.json")
    except OSError as error:
        return doubt(State.DOUBTED, f"wheel.json cannot be read: {error.strerror}")
    target = Target(wheel.system, wheel.machine, wheel.libc, wheel.libc_version, ())
    locked = requirements.llama().version
    if not is_there:
        return doubt(State.DAMAGED, "its wheel is gone", target, wheel)
    if wheel.version != locked:
        return doubt(State.OLD, f"this rbee uses {locked}", target, wheel)
    return doubt(State.GOOD, "", target, wheel)


def _locked(kind: Kind, folder: Path) -> Cached:
    if kind is Kind.CUDA:
        return _cuda(folder)
    target = next((target for target in _candidates(folder) if _name_of(kind, target) == folder.name), None)
    if target is None:
        return _seen(kind, folder, State.OLD, "no lock of this rbee names it")
    return _seen(kind, folder, State.GOOD, "", target)


def _cuda(folder: Path) -> Cached:
    """Of one kind of machine, whatever its Python and C library."""
    for machine in ("x86_64", "aarch64"):
        target = toolkit.fetched_for(Target("Linux", machine, "glibc", (), ()))
        for line in cuda.LINES:
            for lines in (toolkit.compiler(line.major), toolkit.libraries(line.major)):
                if folder.name == folder_name(line.lock.removesuffix(".txt"), lines, target):
                    return _seen(Kind.CUDA, folder, State.GOOD, "", target)
    return _seen(Kind.CUDA, folder, State.OLD, "no lock of this rbee names it")


def _seen(
    kind: Kind,
    path: Path,
    state: State,
    why: str = "",
    target: Target | None = None,
    wheel: LlamaWheel | None = None,
) -> Cached:
    size, used = 0, 0.0
    for name, status in _files(path):
        size += status.st_blocks * 512
        if name != "wheel.json":  # which is read by whoever looks
            used = max(used, status.st_atime)
    return Cached(kind, path, size, used if used and _keeps_access_times(path) else None, state, why, target, wheel)


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                yield name, Path(base, name).lstat()
            except OSError:
                continue


def _keeps_access_times(path: Path) -> bool:
    try:
        return not os.statvfs(path).f_flag & getattr(os, "ST_NOATIME", 0)
    except OSError:
        return False


# --- what a lock names ---


def _base(target: Target) -> Sequence[Locked]:
    return requirements.for_runtime(target)


def _build(target: Target) -> Sequence[Locked]:
    return requirements.for_target(requirements.BUILD, target)


def _uv(_: Target) -> Sequence[Locked]:
    return [requirements.uv()]


#: How the folder of a lock begins.
_LOCKED = {"base": Kind.BASE, "build": Kind.BUILD, "uv": Kind.UV, "cuda12": Kind.CUDA, "cuda13": Kind.CUDA}
_LINES: dict[Kind, tuple[str, Callable[[Target], Sequence[Locked]]]] = {
    Kind.BASE: ("base", _base),
    Kind.BUILD: ("build", _build),
    Kind.UV: ("uv", _uv),
}


def _name_of(kind: Kind, target: Target) -> str:
    if kind not in _LINES:
        return ""
    prefix, lines = _LINES[kind]
    return folder_name(prefix, lines(target), target)


def _candidates(folder: Path) -> Iterator[Target]:
    """The platforms and Pythons that what lies in a folder can be for, by the tags in the names of its wheels."""
    tags = " ".join(path.stem.split("-", 2)[-1] for path in folder.glob("*.whl"))
    if not tags and not (folder / "uv").exists():
        return
    minors = sorted({int(minor) for minor in re.findall(r"\bcp3([0-9]+)-cp3", tags)})
    pythons = [(3, minor) for minor in minors] or [(3, minor) for minor in range(OLDEST_PYTHON[1], _PYTHON)]
    machines = [name for name in ("x86_64", "aarch64") if name in tags or (name == "aarch64" and "arm64" in tags)]
    for python in pythons:
        for machine in machines or ["x86_64", "aarch64"]:
            for system, libc, version in _platforms(tags):
                yield Target(system, machine, libc, version, python)


def _platforms(tags: str) -> Iterator[tuple[str, str, Version]]:
    if "musllinux" in tags or "linux" not in tags:
        yield from (("Linux", "musl", (1, minor)) for minor in range(_MUSL))
    if "macosx" in tags or "linux" not in tags:  # from 11 on only the first number counts
        yield from (("Darwin", "macos", (major, 0)) for major in range(_OLDEST_MACOS, _MACOS))
        yield from (("Darwin", "macos", (10, minor)) for minor in range(_OLDEST_MACOS_10, 17))
    if "manylinux" in tags or not re.search("macosx|musllinux", tags):
        yield from (("Linux", "glibc", (2, minor)) for minor in range(_OLDEST_GLIBC, _GLIBC))
        yield "Linux", "", ()
