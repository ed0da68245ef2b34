"""Which CUDA a node's driver and GPUs allow, what a build for them is compiled for, and which wheel covers them. Pure.

Rules (NVIDIA's "CUDA Compatibility" and "Blackwell Compatibility Guide", and the CUDA C++ programming guide, 5.2)
- SASS runs on GPUs of its own major compute capability and the same or a newer minor one. Tegra's run their own only,
  and what was compiled for features of one architecture (12.0a) runs there alone, of one family (10.0f) in its major.
- PTX is compiled by the driver for any newer GPU, where the driver knows the CUDA that the PTX was made with.
- SASS made with any toolkit of a line (12, 13) runs with every driver of that line or a newer one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rbee.setup.base.platforms import Target, Version

#: Those of Tegra, whose code is theirs alone.
_TEGRA = frozenset({(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)})
#: llama.cpp's kernels for FP4 are compiled for these in full only.
_IN_FULL = frozenset({(12, 0), (12, 1)})
_ARCHITECTURE = re.compile(r"([0-9]{1,2})\.([0-9])([af]?)")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of toolkits. driver: the oldest of NVIDIA's drivers for it. oldest, newest: GPUs that its libraries, of
    the locked version, have code for."""

    major: int
    driver: str
    oldest: Version
    newest: Version

    @property
    def lock(self) -> str:
        """The lock of its libraries, and of its compiler where the package index has that."""
        return f"cuda{self.major}.txt"


#: The better one first.
LINES = (Line(13, "580", (7, 5), (12, 1)), Line(12, "525", (5, 0), (9, 0)))


@dataclass(frozen=True, slots=True, order=True)
class Architecture:
    """What code was compiled for. only: "a" for that GPU's features, "f" for those of its family, else ""."""

    version: tuple[int, int]
    only: str = ""

    @property
    def text(self) -> str:
        return f"{self.version[0]}.{self.version[1]}{self.only}"

    @classmethod
    def read(cls, text: str) -> Architecture | None:
        found = _ARCHITECTURE.fullmatch(text)
        return cls((int(found[1]), int(found[2])), found[3]) if found else None

    def runs_on(self, gpu: Version) -> bool:
        """As SASS."""
        if self.only == "a" or self.version in _TEGRA or gpu in _TEGRA:
            return self.version == gpu
        return self.version[0] == gpu[0] and self.version <= gpu

    def is_compiled_for(self, gpu: Version) -> bool:
        """As PTX, by a driver."""
        if self.only:
            return self.runs_on(gpu)
        return self.version <= gpu


@dataclass(frozen=True, slots=True)
class Code:
    """What a library has for GPUs. line: of the toolkit whose libraries it loads. ptx_by: the CUDA that a driver has to
    know for its PTX, () where there is none."""

    line: int
    sass: frozenset[Architecture] = frozenset()
    ptx: frozenset[Architecture] = frozenset()
    ptx_by: Version = ()

    @property
    def text(self) -> str:
        """For `read`: `13 sass 8.9 12.0a ptx 9.0 by 13.0`."""
        sass, ptx = (" ".join(each.text for each in sorted(some)) for some in (self.sass, self.ptx))
        return " ".join(f"{self.line} sass {sass} ptx {ptx} by {'.'.join(map(str, self.ptx_by))}".split())

    @property
    def build_tag(self) -> str:
        """For `of_build_tag`: `text` in a wheel's name, as what PEP 427 calls its build tag."""
        return self.text.replace(" ", "_")

    @classmethod
    def of_build_tag(cls, tag: str) -> Code | None:
        """From `build_tag`; None for another one."""
        return cls.read(tag.replace("_", " "))

    @classmethod
    def read(cls, text: str) -> Code | None:
        """From `text`; None for what is none."""
        found = re.fullmatch(r"([0-9]{1,2}) sass ?(.*?) ?ptx ?(.*?) ?by ?([0-9.]*)", text)
        if not found:
            return None
        sass, ptx = ([Architecture.read(word) for word in found[n].split()] for n in (2, 3))
        if None in sass or None in ptx:
            return None
        by = tuple(int(number) for number in found[4].split(".") if number)
        return cls(int(found[1]), frozenset(filter(None, sass)), frozenset(filter(None, ptx)), by)


def line(target: Target) -> Line | None:
    """The newest line of toolkits that serves all GPUs of a machine with its driver; None where none does."""
    return next((each for each in LINES if _serves(each, target)), None)


def why_no_line(target: Target) -> str:
    """Why no line of toolkits serves a machine, and what helps. For one whose `line` is None."""
    gpus = sorted(target.gpus)
    if not target.cuda:
        return "NVIDIA's driver on the node does not say which CUDA it knows"
    if target.cuda < (12, 0):
        return f"NVIDIA's driver on the node knows CUDA {_dotted(target.cuda)} only; install driver 525 or newer"
    if target.cuda < (13, 0) and gpus and gpus[-1] > LINES[1].newest:
        return (
            f"a GPU of compute capability {_dotted(gpus[-1])} takes CUDA 13 here; install NVIDIA's driver 580 or newer"
        )
    old = gpus[0] if gpus else ()
    return f"CUDA's libraries have nothing for a GPU of compute capability {_dotted(old)} beside the others"


def _serves(each: Line, target: Target) -> bool:
    return target.cuda >= (each.major, 0) and all(each.oldest <= gpu <= (*each.newest[:1], 9) for gpu in target.gpus)


def brought(target: Target) -> frozenset[int]:
    """Lines whose libraries rbee can put into a runtime there."""
    glibc = target.system == "Linux" and target.libc == "glibc"
    return frozenset(each.major for each in LINES if glibc and target.cuda >= (each.major, 0))


def obstacle(code: Code, target: Target) -> str:
    """Why a machine cannot use a library with `code`, as a clause; "" where it can. What a machine does not say of its
    GPUs stands in nobody's way."""
    if not code.line:
        return "it does not say which CUDA it was made with"
    if target.cuda and target.cuda < (code.line, 0):
        return f"it was made with CUDA {code.line}, and the node's driver knows {_dotted(target.cuda)}"
    knows_ptx = bool(code.ptx_by) and target.cuda >= code.ptx_by
    for gpu in sorted(target.gpus):
        sass = any(each.runs_on(gpu) for each in code.sass)
        ptx = knows_ptx and any(each.is_compiled_for(gpu) for each in code.ptx)
        if not (sass or ptx):
            has = ", ".join(each.text for each in sorted(code.sass | code.ptx)) or "none"
            return f"it has nothing for GPUs of compute capability {_dotted(gpu)} (it has {has})"
    return ""


def groups(targets: Mapping[str, Target]) -> list[list[str]]:
    """Machines by what one build can serve: a system, a processor's kind, a C library, a line of toolkits.

    targets: of machines, by name. The oldest C library of a group comes first: what is built for it runs on the others.
    """
    found: dict[tuple[str, str, str, Line | None], list[str]] = {}
    for name, target in sorted(targets.items(), key=lambda item: item[1].libc_version):
        found.setdefault((target.system, target.machine, target.libc, line(target)), []).append(name)
    return list(found.values())


def joined(target: Target, others: Iterable[Target]) -> Target:
    """`target` as a build sees it that serves others of its group too: all their GPUs, the oldest of their drivers and
    C libraries."""
    every = (target, *others)
    return replace(
        target,
        libc_version=min(each.libc_version for each in every),
        cpu=frozenset.intersection(*(each.cpu for each in every)),
        cudart=frozenset.intersection(*(each.cudart for each in every)),
        cuda=min(each.cuda for each in every),
        gpus=frozenset[Version]().union(*(each.gpus for each in every)),
    )


def architectures(targets: Iterable[Target]) -> str:
    """CMAKE_CUDA_ARCHITECTURES of one build for all of these machines; "" where none says what it has.

    Code for each kind of GPU itself: what runs elsewhere too is slower there. No PTX, which a driver compiles for
    minutes at the first use.
    """
    gpus = sorted({gpu for target in targets for gpu in target.gpus})
    return ";".join(f"{major}{minor}{'a' * ((major, minor) in _IN_FULL)}-real" for major, minor in gpus)


def flags(targets: Iterable[Target]) -> tuple[str, ...]:
    """CMake's, for one build for all of these machines. NCCL, which the builder may happen to have, no node has."""
    wanted = architectures(targets)
    return ("-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF", *([f"-DCMAKE_CUDA_ARCHITECTURES={wanted}"] if wanted else []))


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
