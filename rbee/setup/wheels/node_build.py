"""Compiles llama-cpp-python on a node that has a compiler, and fetches the wheel for its next runtime."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Notice
from rbee.base.files import LocalFile
from rbee.setup.base import node_scripts
from rbee.setup.base.platforms import Target
from rbee.setup.base.put_files import put_files
from rbee.setup.base.stoppable import in_thread
from rbee.setup.wheels import building, portable, toolkit
from rbee.setup.wheels.kept import goes_on, nonce
from rbee.transport.connection import Connection, quote
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.setup.wheels.cache import WheelCache

#: Bytes that are fetched at once, seconds that takes at most, and bytes of a wheel or a library.
PIECE = 8 * 2**20
PIECE_TIMEOUT_S = 300.0
LARGEST_WHEEL = 2 * 2**30
LARGEST_LIBRARY = 64 * 2**20

#: Where the tools for GPUs are besides PATH, as the shell of a node writes it.
_TOOL_FOLDERS = "${VULKAN_SDK:-/usr}/bin:${ROCM_PATH:-/opt/rocm}/bin:${CUDA_PATH:-/usr/local/cuda}/bin"

_WHEEL = re.compile(r"llama_cpp_python-[0-9][\w.+]*-[\w.]+-[\w.]+-[\w.]+\.whl", re.ASCII)


@dataclass(frozen=True, slots=True)
class NodeBuilder:
    """place: where the node's home, uv and Python are. log: where all that the build says is written, here.

    forecast: how long it will take.
    """

    connection: Connection
    name: str
    place: node_scripts.Place
    log: Path
    cache: WheelCache
    forecast: Notice

    async def build(self, target: Target, flags: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
        """The wheel in `folder`, and the libraries of the node that it may have to bring along.

        Raises NodeError BOOTSTRAP_FAILED and ConnectError.
        """
        await self._check_tools(flags, target)
        emit(self.forecast)
        source = await building.fetch_source(folder, emit)
        archive = LocalFile.of(source)
        tools = await self.cache.tool_wheels(target, emit)
        # A node's own toolkit is not looked for: where the locked one serves its GPUs, that is what compiles.
        takes_cuda = building.is_for_cuda(flags) and toolkit.has_wheels(target)
        cuda = await self.cache.toolkit_wheels(target, emit) if takes_cuda else []
        files = [(file, node_scripts.wheel_path(self.place.home, file)) for file in (*cuda, *tools, archive)]
        await put_files(self.connection, files, key="source", text=f"uploading the source to {self.name}", emit=emit)
        staging = node_scripts.staging_path(self.place.home, f"build-{nonce(folder)}")
        placed, wheels = files[: len(cuda)], files[len(cuda) : -1]
        script = node_scripts.build_wheel(self.place, staging, files[-1], wheels, flags, placed)
        try:
            built = await self._compile(script, folder, emit)
        except BaseException as error:
            if not goes_on(folder, error):
                await self._remove(staging)
            raise
        await self._remove(staging)
        return built

    async def _check_tools(self, flags: str, target: Target) -> None:
        """Before anything is sent: CMake would miss them minutes later. Looked for where CMake does."""
        needed = building.needed_on_node(flags, target)
        if needed is None:
            return
        tool, how = needed
        script = f'PATH="$PATH:{_TOOL_FOLDERS}"; command -v {tool} >/dev/null'
        if tool == "nvcc":
            script += ' || command -v "${CUDACXX:-nvcc}" >/dev/null'
        if (await self.connection.run(script)).status != 0:
            message = f"{self.name} has no `{tool}`, which building llama.cpp for its GPU takes"
            raise NodeError(ErrorCode.BOOTSTRAP_FAILED, message, hint=f"there: {how}")

    async def _remove(self, staging: str) -> None:
        await self.connection.run(f"rm -rf {quote(staging)}")

    async def _compile(self, script: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
        with building.BuildLog(self.log, emit) as build_log:
            last = ""
            async with self.connection.stream_script(script) as lines:
                async for line in lines:
                    last = line.decode(errors="replace")
                    build_log.hear(last)
            if not last.startswith("built "):
                raise build_log.failure(f"on {self.name}")
        remote = last.removeprefix("built ")
        wheel = folder / Path(remote).name
        if not _WHEEL.fullmatch(wheel.name):  # it becomes a name in the keeper's cache
            raise build_log.failure(f"on {self.name}")
        build_log.discard()
        await self._fetch(quote(remote), wheel, LARGEST_WHEEL)
        found: dict[str, Path] = {}
        for name in sorted(await in_thread(lambda stop: portable.missing_libraries(wheel, stop))):
            found[name] = folder / f"library-{name}"
            await self._fetch(f'"$(cc -print-file-name={quote(name)})"', found[name], LARGEST_LIBRARY)
        return wheel, found.get

    async def _fetch(self, word: str, target: Path, most: int) -> None:
        """Write a file of the node to `target`, piece by piece. word: its path there, as a word of the shell."""
        with target.open("wb") as file:
            while file.tell() <= most:
                # tail goes straight to the place in the file
                script = f"[ -r {word} ] && tail -c +{file.tell() + 1} {word} | head -c {PIECE}"
                result = await self.connection.run(script, timeout=PIECE_TIMEOUT_S)
                file.write(result.stdout)
                if result.status != 0 or len(result.stdout) < PIECE:
                    break
            if result.status == 0 and file.tell() <= most:
                return
        said = f"it is larger than {most // 2**20} MiB" if result.status == 0 else result.stderr.strip()[-200:]
        raise NodeError(ErrorCode.BOOTSTRAP_FAILED, f"could not fetch {target.name} from {self.name}: {said}")
