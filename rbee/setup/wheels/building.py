"""Compiles llama-cpp-python into a wheel: on this machine, or on a node that has a compiler.

Rules
- The source and the tools are the locked ones, by their SHA-256. A build looks for nothing else, and in no index.
- The wheel is not tied to the processor it was built on: the CPU variants that make a difference (source.py) are
  inside, and llama.cpp picks at run time.
- Whatever ends a build (an error, Ctrl-C), its processes end first. What an interrupted one leaves is gone on with
  (kept.py).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Notice, Progress
from rbee.base.files import LocalFile
from rbee.render.text import neutralise
from rbee.setup.base import child, cuda, node_scripts, pip, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.base.stoppable import in_thread
from rbee.setup.wheels import rocm_sdk, toolkit, vulkan_sdk
from rbee.setup.wheels.source import cut_down
from rbee_remote.protocol import ErrorCode


@dataclass(frozen=True, slots=True)
class Sdk:
    """What compiling for a backend takes besides a compiler for C++. program: whose absence on a node tells.
    missing: the first thing that this machine lacks."""

    switch: str
    program: str
    how_to_install: str
    missing: Callable[[], str | None]


SDKS = {
    "cuda": Sdk("-DGGML_CUDA=ON", "nvcc", toolkit.HOW_TO_INSTALL, lambda: None if shutil.which("nvcc") else "nvcc"),
    "rocm": Sdk("-DGGML_HIP=ON", "hipcc", rocm_sdk.HOW_TO_INSTALL, rocm_sdk.missing),
    "vulkan": Sdk("-DGGML_VULKAN=ON", "glslc", vulkan_sdk.HOW_TO_INSTALL, vulkan_sdk.missing),
}

#: Seconds that all cores together need for a wheel for the CPU, and those of what is not compiling (fetching, linking).
#: 484 by `benchmarks/newcomer.py` with gcc 12 on two quiet cores; some 100 more beside other work.
BUILD_CPU_S = 550.0
#: What the kernels of a backend for GPUs take besides: CUDA's for one architecture (156 files, 39 min with one job),
#: and Vulkan's shaders. ROCm's were not measured.
KERNELS_CPU_S = {"cuda": 2400.0, "vulkan": 850.0}
BUILD_REST_S = 30.0

#: MB of disk for a build for CUDA: 500 the toolkit's wheels, 320 the toolkit, 130 the source and uv's cache; the rest
#: is what is compiled.
CUDA_MB = 1500

_STEP = re.compile(r"^\s*\[([0-9]{1,6})/([0-9]{1,6})\]")
#: What a build says that has something to go on with: the steps that an interrupted one has done.
_GOING_ON = re.compile(r"^going on: *([1-9][0-9]{0,5})$")
_LAST_LINES = 12
#: Characters of a log; a build of all backends says a tenth of that, a node that is not well says it for ever.
_LONGEST_LOG = 64 * 2**20
KEY = "build"


def cmake_flags(target: Target, backend: str) -> str:
    """CMAKE_ARGS for a wheel that runs on any processor of `target`'s kind.

    On Linux every backend, the CPU variants too, is a library of its own, loaded at run time. On macOS they are
    linked in: all of Apple's own processors have what the compiler assumes by default.
    """
    common = ["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", "-DGGML_RPC=ON"]
    if target.system == "Linux":
        common += ["-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"]
    match backend:
        case "cuda":
            own: Sequence[str] = cuda.flags([target])
        case "rocm":
            own = rocm_sdk.flags(target.amdgpu)
        case "metal":
            own = ("-DGGML_METAL=ON", "-DGGML_METAL_EMBED_LIBRARY=ON")
        case "vulkan":
            own = (SDKS[backend].switch,)
        case _:
            own = ()
    return " ".join([*common, *own])


def is_for_cuda(flags: str) -> bool:
    return SDKS["cuda"].switch in flags.split()


def has_toolkit_here(target: Target) -> bool:
    """Whether the package index has a CUDA toolkit that runs on this machine and compiles for `target`."""
    return toolkit.compiles_on(Target.here(), target)


def builds_here(target: Target, backend: str) -> bool:
    return target.runs_what_is_built_on(Target.here()) and missing_tool(backend, target) is None


def missing_tool(backend: str, target: Target) -> str | None:
    """What this machine lacks to build for a backend: a program's or a file's name, None when it has all."""
    if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
        return "c++"
    if backend not in SDKS or (backend == "cuda" and has_toolkit_here(target)):
        return None
    return SDKS[backend].missing()


def needed_on_node(flags: str, target: Target) -> tuple[str, str] | None:
    """A program that a build with `flags` takes besides a compiler, where a node builds for itself, and how to install
    it; None for nothing."""
    if is_for_cuda(flags) and toolkit.has_wheels(target):
        return None
    needed = (sdk for sdk in SDKS.values() if sdk.switch in flags.split())
    return next(((sdk.program, sdk.how_to_install) for sdk in needed), None)


def how_to_install(backend: str, target: Target) -> str:
    """What helps where `missing_tool` names something."""
    tool = missing_tool(backend, target)
    if tool == "c++" or backend not in SDKS:
        return "apt install build-essential (dnf: gcc-c++; macOS: xcode-select --install)"
    return f'{SDKS[backend].how_to_install}, or set backend = "cpu" for the node'


def what_lacks(target: Target, backend: str) -> str:
    """Why this machine cannot build for a node, as a clause."""
    here = Target.here()
    if not target.runs_what_is_built_on(here):
        return f"what this machine ({here.name}) builds does not run on {target.name}"
    return f"this machine has no `{missing_tool(backend, target)}`: {how_to_install(backend, target)}"


def no_way(target: Target, backend: str, built_elsewhere: str = "") -> NodeError:
    """Why there is no llama-cpp-python for a node that has no compiler, and what helps.

    built_elsewhere: a node whose build would fit.
    """
    here = Target.here()
    if target.runs_what_is_built_on(here):
        tool = missing_tool(backend, target)
        message = f"llama.cpp for {backend} has to be compiled once, and this machine has no `{tool}`"
        return NodeError(ErrorCode.BOOTSTRAP_FAILED, message, hint=how_to_install(backend, target))
    other = f'builds_from = ["{built_elsewhere}"] in its inventory table, if you trust that; or ' * bool(
        built_elsewhere
    )
    return NodeError(
        ErrorCode.NODE_UNSUPPORTED,
        f"no llama.cpp for {target.name} ({backend}): this machine ({here.name}) cannot build it, nor can the node",
        hint=f"{other}install a compiler on the node (apt install build-essential; apk add build-base), "
        "or name an index of prebuilt wheels (wheel_indexes)",
        details={"node": target.name, "keeper": here.name, "backend": backend},
    )


def forecast(where: str, cores: int, backend: str, *, is_begun: bool = False) -> Notice:
    """What to tell before a build. where: whose cores those are. Of CUDA, for one architecture; more take longer.
    is_begun: it was interrupted, and how much of it is done shows when it goes on."""
    known = backend != "rocm"
    minutes = math.ceil(((BUILD_CPU_S + KERNELS_CPU_S.get(backend, 0.0)) / cores + BUILD_REST_S) / 60)
    about = f"about {minutes} min" if known else f"{minutes} min and more, because of {backend}"
    if is_begun:
        whole = f"the whole build takes {about} on {cores} core{'s' * (cores > 1)}"
        return Notice(f"llama.cpp for {where} is built on from where that was interrupted; {whole}")
    return Notice(
        f"llama.cpp has to be compiled once for {where}: {about} on {cores} core{'s' * (cores > 1)}, and seconds from "
        f"then on; an index of prebuilt wheels (wheel_indexes) saves that"
    )


def check_room(folder: Path) -> None:
    """Before a build for CUDA begins here, which else finds out after half an hour. Raises NodeError DISK_FULL."""
    free_mb = shutil.disk_usage(folder).free // 10**6
    if free_mb < CUDA_MB:
        raise NodeError(
            ErrorCode.DISK_FULL,
            f"building llama.cpp for cuda takes {CUDA_MB} MB of disk here, and {folder.parent} has {free_mb} MB free",
            hint="free some space, or set RBEE_WHEEL_CACHE to a folder on another disk",
            details={"needed_mb": CUDA_MB, "free_mb": free_mb},
        )


def cores_here() -> int:
    """Those that a child of ours may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def build_here(
    flags: str, folder: Path, tools: Sequence[LocalFile], log: Path, emit: Emit, cuda_toolkit: Sequence[LocalFile] = ()
) -> Path:
    """Compile in `folder` and return the wheel inside it. log: all that was said, kept on failure.

    folder: must exist; has what an interrupted build left.

    tools: the wheels of what compiles it. cuda_toolkit: those of a CUDA toolkit, none for the installed one.
    Raises NodeError BOOTSTRAP_FAILED; a missing compiler is the caller's to
    look for.
    """
    from uv import find_uv_bin

    source = await fetch_source(folder, emit)
    place = node_scripts.Place(str(folder), find_uv_bin(), sys.executable)
    staging = folder / "build"
    placed = [(tool, str(tool.path)) for tool in tools]
    cuda_placed = [(wheel, str(wheel.path)) for wheel in cuda_toolkit]
    archive = (LocalFile.of(source), str(source))
    script = node_scripts.build_wheel(place, str(staging), archive, placed, flags, cuda_placed)
    with BuildLog(log, emit) as build_log:
        await child.run(["/bin/sh", "-c", script], build_log.hear)
        built = list(staging.glob("built/*.whl"))
        if len(built) != 1:
            raise build_log.failure("here")
    build_log.discard()
    return built[0]


async def fetch_source(folder: Path, emit: Emit) -> Path:
    """An archive in `folder` with what of the locked source a wheel is made of. Nothing of it has run."""
    requirement = requirements.llama()
    archive = folder / f"{requirement.name}-{requirement.version}.cut.tar.gz"
    if archive.exists():
        return archive
    text = f"downloading the source of {requirement.name} {requirement.version}"
    emit(Progress("source", text, 0.0, None))
    whole = await pip.fetch_locked(requirement, folder / "source", on_line=pip.report_bytes(emit, "source", text))
    half_made = folder / f"{archive.name}.part"
    await in_thread(lambda stop: cut_down(whole, half_made, stop))
    return half_made.rename(archive)


class BuildLog:
    """Listens to a build: all of it goes to a file, its steps become progress, its last words an error.

    What a node says is its own choice, and the file is for reading: what a terminal would obey is written out.
    """

    def __init__(self, path: Path, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._file = path.open("w", encoding="utf-8")
        self._room = _LONGEST_LOG
        self._emit = emit
        self._clock = clock
        self._began = clock()
        self._before = 0
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._errors: list[str] = []
        self._emit(Progress(KEY, "preparing to build llama.cpp", 0.0, None, "steps"))

    def __enter__(self) -> BuildLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def hear(self, line: str) -> None:
        line = neutralise(line)
        if self._room > 0:
            self._file.write(f"{line[: self._room]}\n")
            self._room -= len(line) + 1
        if step := _STEP.match(line):
            done, total = float(step[1]) + self._before, float(step[2]) + self._before
            self._emit(Progress(KEY, self._text(int(step[1]), int(step[2])), done, total, "steps"))
        elif before := _GOING_ON.match(line):
            self._before = int(before[1])
            self._emit(Notice(f"the build of llama.cpp that was interrupted goes on: {before[1]} files are done"))
        if line.strip():
            self._last.append(line.strip()[:300])
        if re.search(r"\berror\b[: ]|CMake Error", line) and len(self._errors) < _LAST_LINES:
            self._errors.append(line.strip()[:300])

    def _text(self, done: int, total: int) -> str:
        """How long it has taken, and will, once a tenth tells. done, total: of what this build itself has to do."""
        elapsed = self._clock() - self._began
        left = f", about {_elapsed(elapsed * (total - done) / done)} left" if total <= done * 10 < total * 10 else ""
        return f"building llama.cpp ({_elapsed(elapsed)}{left})"

    def discard(self) -> None:
        self._path.unlink()

    def failure(self, where: str) -> NodeError:
        """What to raise when the build ended badly. where: "here" or the node's name."""
        said = self._errors[0] if self._errors else (self._last[-1] if self._last else "no output")
        return NodeError(
            ErrorCode.BOOTSTRAP_FAILED,
            f"llama.cpp did not build {where}: {said}",
            hint=f"the whole log is {self._path}",
            details={"log": str(self._path), "last_lines": list(self._last)},
        )


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
