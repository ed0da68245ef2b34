"""The wheel for nodes, llama-bench and llama-server, out of one build tree.

Rules
- Built for the GPU of this machine alone, and for processors with AVX2 without variants: minutes count here, and
  what is compared is the programs around llama.cpp, which all run the same libraries.
- A build that was cut off goes on where it was, by ninja's own state. One that takes longer than a call may is
  stopped before, so that ninja notes what it has.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks import llama_cpp
from benchmarks.gpu.source import VOCABULARY
from benchmarks.gpu.work import Work
from rbee.base.settings import Settings
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import building
from rbee.setup.wheels.cache import WheelCache

#: What is said of a build that nobody reads line by line.
_LOG = "build.log"
#: Seconds that a call's build takes at most, of the ten minutes that it has, and for a stopped one to end.
LIMIT_S = 540.0
_END_S = 10.0


class UnfinishedError(Exception):
    """The time of this call is over; the next goes on."""


def build(work: Work, limit_s: float = LIMIT_S) -> None:
    """Build what is not there yet, and put it where keepers, this Python and the benchmarks find it.

    Raises UnfinishedError after `limit_s` seconds, CalledProcessError."""
    source = _unpack(work)
    wheel = _wheel(work, source, limit_s)
    cache = WheelCache(work.wheel_cache, Settings.from_environment().log)
    cache.add_wheel(wheel, work.backend, libc=Target.here().libc)
    _pip("install", "--no-index", "--no-deps", "--force-reinstall", str(wheel))
    peers = llama_cpp.folder(work.backend)
    peers.parent.mkdir(parents=True, exist_ok=True)
    if not peers.is_symlink():
        peers.symlink_to(work.tree / "bin")


def flags(backend: str) -> list[str]:
    """For CMake, of wheel and programs alike."""
    wheel = building.cmake_flags(Target.here(), backend).replace("-DGGML_CPU_ALL_VARIANTS=ON", "").split()
    programs = [flag for flag in llama_cpp.cmake_flags(backend) if flag not in wheel]
    programs = [flag for flag in programs if flag != "-DGGML_CPU_ALL_VARIANTS=ON"]
    gpu = [f"-DCMAKE_CUDA_ARCHITECTURES={_architectures()}", *_run_path()] if backend == "cuda" else []
    return [*wheel, *programs, *gpu, "-DLLAMA_BUILD_TOOLS=ON", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_TOOLS_INSTALL=OFF"]


def _architectures() -> str:
    """Of this machine's GPUs, as the driver tells them; CMake finds them by itself from 3.24 on."""
    words = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    told = subprocess.run(words, capture_output=True, text=True, check=False).stdout if shutil.which(words[0]) else ""
    found = {line.strip().replace(".", "") for line in told.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())}
    return ";".join(sorted(found)) or "native"


def _run_path() -> list[str]:
    """Has what is linked look for CUDA's libraries where the toolkit is: CMake leaves out what nvcc knows by itself,
    and an image's loader may not know it."""
    if not (nvcc := shutil.which("nvcc")):
        return []
    toolkit = Path(nvcc).resolve().parents[1]
    folders = [toolkit / "lib64", toolkit / "targets" / "x86_64-linux" / "lib"]
    if not (found := next((folder for folder in folders if folder.is_dir()), None)):
        return []
    return [f"-DCMAKE_{kind}_LINKER_FLAGS=-Wl,-rpath,{found}" for kind in ("MODULE", "SHARED", "EXE")]


def vocabulary(work: Work) -> Path:
    """The file of the vocabulary for models of random weights."""
    return _unpack(work) / VOCABULARY


def _unpack(work: Work) -> Path:
    """The sources' folder. Its files keep their times, so that nothing is built twice."""
    if not work.source.is_dir():
        part = work.folder / "source.part"
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(work.pack / "source.tar.xz") as packed:
            packed.extractall(part, filter="data")
        part.rename(work.source)
    (source,) = work.source.iterdir()
    return source


def _wheel(work: Work, source: Path, limit_s: float) -> Path:
    """The wheel as scikit-build-core makes it; the programs are built with it, and are not in it."""
    made = work.folder / "wheel"
    if not list(made.glob("*.whl")):
        log = work.folder / _LOG
        print(f"building llama.cpp for {work.backend}; log: {log}", flush=True)
        words = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--verbose", "--wheel-dir", str(made)]
        words += ["--config-settings", f"build-dir={work.tree}", str(source)]
        args = " ".join(flags(work.backend))
        try:
            env = {"CMAKE_ARGS": args, "CMAKE_BUILD_PARALLEL_LEVEL": str(building.cores_here())}
            _pip(*words, env=env, log=log, limit_s=limit_s)
        except subprocess.CalledProcessError:
            work.keep_logs(log)
            raise
    (wheel,) = made.glob("*.whl")
    return wheel


def _pip(*words: str, env: dict[str, str] | None = None, log: Path | None = None, limit_s: float | None = None) -> None:
    """Raises CalledProcessError, with the end of the log shown, UnfinishedError."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # ninja of the pack
    command = [sys.executable, "-m", "pip", *words]
    status = run_for(command, {**os.environ, "PATH": path, **(env or {})}, log or Path(os.devnull), limit_s)
    if status is None:
        raise UnfinishedError(f"not done after {limit_s:.0f} s{_at(log)}: the same step again goes on there")
    if status and log:
        print(log.read_text(errors="replace")[-4000:])
    if status:
        raise subprocess.CalledProcessError(status, command)


def run_for(command: Sequence[str], env: dict[str, str], log: Path, limit_s: float | None) -> int | None:
    """The exit status; None where it did not end within `limit_s` seconds, and was ended with all that it started, as
    by Ctrl-C: ninja then removes what is half written."""
    with log.open("a") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, sign)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)


def _at(log: Path | None) -> str:
    """How far ninja said that it is: of what was left when it began."""
    text = log.read_text(errors="replace") if log else ""
    steps = re.findall(r"^ *\[(\d+)/(\d+)\]", text, re.MULTILINE)
    return f", {steps[-1][0]} of {steps[-1][1]} files of this call" if steps else ""
