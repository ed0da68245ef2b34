"""The peers: llama-server and llama-bench of the very llama.cpp that the worker runs, built once into the cache.

    ~/.cache/rbee/peers/VERSION-DIGEST/     both programs and their libraries; DIGEST is of the flags

Rules
- The source is the locked sdist of llama-cpp-python, the flags are those of the wheel for nodes: what is compared is
  the programs around llama.cpp, not two compilers.
- The folder gets its name when the build is whole, and finds its libraries wherever it is put.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
import httpx

from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import building
from tests.testbed import assets

PROGRAMS = ("llama-server", "llama-bench")
START_S = 120.0
#: llama-server hangs up on a connection that is idle for 5 s, just when the next request may be on its way.
NO_KEEP_ALIVE = httpx.Limits(max_keepalive_connections=0)
STOP_S = 10.0

#: Beyond the wheel's flags: no network and no web page in the server, and libraries that are found beside the programs.
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
)
#: Flags of the wheel that llama-cpp-python's own CMakeLists reads, not llama.cpp's.
_OF_THE_BINDINGS = ("-DLLAVA_BUILD=OFF",)


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """A llama-server that is ready. client: speaks to it, without time limits. socket: where it listens."""

    client: httpx.AsyncClient
    socket: Path
    pid: int


@asynccontextmanager
async def llama_server(
    model: Path, slots: int, ctx: int, threads: int, *, backend: str = "cpu", options: Sequence[str] = (), port: int = 0
) -> AsyncIterator[LlamaServer]:
    """llama-server as it comes, on a unix socket or on a port of 127.0.0.1, until the block ends.

    ctx: tokens per slot, each with a cache of its own, as in a worker. options: more of its own command line.
    Raises RuntimeError with the end of its log when it does not become ready.
    """
    program = programs(backend) / "llama-server"
    with tempfile.TemporaryDirectory(prefix="rbee-peer-") as place:
        socket, log = Path(place, "llama.sock"), Path(place, "log")
        listen = ["127.0.0.1", "--port", str(port)] if port else [str(socket)]
        words = ["--model", str(model), "--host", *listen, "--parallel", str(slots), "--no-kv-unified"]
        words += ["--ctx-size", str(ctx * slots), *_common_words(threads, backend), *options]
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                program, *words, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=_environment()
            )
        try:
            transport = httpx.AsyncHTTPTransport(uds=None if port else str(socket), limits=NO_KEEP_ALIVE)
            url = f"http://127.0.0.1:{port}" if port else "http://llama-server"
            async with httpx.AsyncClient(transport=transport, base_url=url, timeout=None) as client:
                await _wait_ready(client, process, log)
                yield LlamaServer(client, socket, process.pid)
        finally:
            await _stop(process)


def llama_bench(
    model: Path, prompt: int, gen: int, repetitions: int, threads: int, *, backend: str = "cpu"
) -> dict[str, tuple[float, ...]]:
    """Tokens/s of each repetition by the name of the test, such as "pp512" and "tg128".

    prompt and gen: tokens, 0 to leave that test out. Raises CalledProcessError.
    """
    words = [str(programs(backend) / "llama-bench"), "--model", str(model)]
    words += ["--n-prompt", str(prompt), "--n-gen", str(gen)]
    words += ["--repetitions", str(repetitions), *_common_words(threads, backend), "--output", "json"]
    done = subprocess.run(words, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    tests = json.loads(done.stdout)
    return {_test_name(test["n_prompt"], test["n_gen"]): tuple(test["samples_ts"]) for test in tests}


def programs(backend: str = "cpu") -> Path:
    """The folder with both programs, built first if need be, which takes minutes. Raises CalledProcessError."""
    built = folder(backend)
    built.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{built}.lock"):
        if not built.is_dir():
            with tempfile.TemporaryDirectory(prefix=".building-", dir=built.parent) as work:
                log = Path(f"{built}.log")
                print(f"building {' and '.join(PROGRAMS)}, which takes minutes; log: {log}", flush=True)
                _build(Path(work), cmake_flags(backend), log).rename(built)
    return built


def folder(backend: str) -> Path:
    """Where both programs lie once they are built."""
    digest = hashlib.sha256(" ".join(cmake_flags(backend)).encode()).hexdigest()[:12]
    return assets.cache_folder() / "peers" / f"{requirements.llama().version}-{digest}"


def cmake_flags(backend: str) -> tuple[str, ...]:
    """How the peers are configured: as the wheel for nodes."""
    wheel = building.cmake_flags(Target.here(), backend).split()
    return (*(flag for flag in wheel if flag not in _OF_THE_BINDINGS), *_FLAGS)


def _build(work: Path, flags: Sequence[str], log: Path) -> Path:
    """The folder inside `work` that holds the finished programs. log: all that pip, cmake and ninja say."""
    with log.open("w") as sink:

        def run(*words: str | Path) -> None:
            subprocess.run(words, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=True)

        pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--dest", work)
        run(*pip, "--requirement", _requirements(work, [requirements.llama()]))
        (archive,) = work.glob("llama_cpp_python-*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(work, filter="data")
        (source,) = work.glob("llama_cpp_python-*/vendor/llama.cpp")
        cmake, ninja = _build_tools(work, run)
        run(cmake, "-S", source, "-B", work / "build", "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", *flags)
        run(cmake, "--build", work / "build", "--target", *PROGRAMS, "--parallel", str(os.cpu_count() or 1))
    return work / "build" / "bin"


def _build_tools(work: Path, run: Callable[..., None]) -> tuple[str, str]:
    """cmake and ninja: this machine's, else the locked ones in a virtual environment of their own."""
    cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
    if cmake and ninja:
        return cmake, ninja
    tools = work / "tools"
    venv.create(tools, with_pip=True)
    wanted = [
        line for line in requirements.for_target(requirements.BUILD, Target.here()) if line.name in {"cmake", "ninja"}
    ]
    run(tools / "bin" / "pip", "install", "--require-hashes", "--requirement", _requirements(work, wanted))
    return str(tools / "bin" / "cmake"), str(tools / "bin" / "ninja")


def _requirements(work: Path, lines: Sequence[requirements.Locked]) -> Path:
    path = work / "requirements.txt"
    path.write_text("\n".join(line.line() for line in lines))
    return path


def _common_words(threads: int, backend: str) -> list[str]:
    gpu_layers = "0" if backend == "cpu" else "99"
    return ["--threads", str(threads), "--n-gpu-layers", gpu_layers]


def _environment() -> dict[str, str]:
    """Without what could name another llama.cpp: LD_LIBRARY_PATH goes before what a program finds beside itself. Its
    other folders stay, by which some images have the GPU's driver."""
    folders = [Path(name) for name in os.environ.get("LD_LIBRARY_PATH", "").split(":") if name]
    kept = [str(folder) for folder in folders if not [*folder.glob("libggml*"), *folder.glob("libllama*")]]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(kept)}


def _test_name(prompt: int, gen: int) -> str:
    return f"pp{prompt}" if prompt else f"tg{gen}"


async def _wait_ready(client: httpx.AsyncClient, process: asyncio.subprocess.Process, log: Path) -> None:
    """Until /health says 200: while the model loads it says 503, and before that nobody listens."""
    deadline = asyncio.get_running_loop().time() + START_S
    while process.returncode is None and asyncio.get_running_loop().time() < deadline:
        try:
            if (await client.get("/health")).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet, or ending; the loop's condition tells which
        await asyncio.sleep(0.05)
    raise RuntimeError(f"llama-server did not become ready:\n{log.read_text(errors='replace')[-2000:]}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
    await process.wait()
