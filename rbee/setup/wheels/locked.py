"""What the locks name besides llama-cpp-python, in the wheel cache: packages, build tools, uv and parts of CUDA."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import NodeError
from rbee.base.events import Emit
from rbee.base.files import LocalFile
from rbee.setup.base import pip, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.wheels import toolkit
from rbee.setup.wheels.llama_wheel import WHAT
from rbee_remote.protocol import ErrorCode


class LockedWheels:
    """The part of the cache at `root` that the locks name: each folder is fetched once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    async def base_wheels(self, target: Target, emit: Emit) -> list[LocalFile]:
        """What a runtime needs besides llama-cpp-python. Raises NodeError NODE_UNSUPPORTED or BOOTSTRAP_FAILED."""
        lines = requirements.for_runtime(target)
        return await self._locked_wheels(requirements.BASE, lines, target, "the runtime's packages", emit)

    async def tool_wheels(self, target: Target, emit: Emit) -> list[LocalFile]:
        """What compiles llama-cpp-python on a node without internet."""
        lines = requirements.for_target(requirements.BUILD, target)
        return await self._locked_wheels(requirements.BUILD, lines, target, "the build tools", emit)

    async def toolkit_wheels(self, target: Target, emit: Emit) -> list[LocalFile]:
        """What a CUDA toolkit is made of, for a build on a machine of the target's kind."""
        needed, what = toolkit.fetched_for(target), "CUDA's compiler (100 MB)"
        lock = f"cuda{toolkit.MAJOR}.txt"
        return [
            *await self._locked_wheels(lock, toolkit.compiler(), needed, what, emit),
            *await self.cuda_libraries(toolkit.MAJOR, target, emit),
        ]

    async def cuda_libraries(self, major: int, target: Target, emit: Emit) -> list[LocalFile]:
        """The wheels with the libraries of a line of CUDA that a worker loads."""
        lines, what = toolkit.libraries(major), "CUDA's libraries (400 MB)"
        return await self._locked_wheels(f"cuda{major}.txt", lines, toolkit.fetched_for(target), what, emit)

    async def _locked_wheels(
        self, lock: str, lines: Sequence[requirements.Locked], target: Target, what: str, emit: Emit
    ) -> list[LocalFile]:
        folder = self.root / folder_name(lock.removesuffix(".txt"), lines, target)
        check(folder)
        if not folder.is_dir():
            hear = pip.report_files(emit, lock, f"fetching {what}", len(lines))
            options = [*_platform_options(target), "--require-hashes"]
            await pip.download([line.line() for line in lines], folder, options=options, on_line=hear)
        files = [LocalFile.of(path) for path in sorted(folder.glob("*.whl"))]
        named = {value for line in lines for value in line.hashes}
        if other := [file for file in files if f"sha256:{file.sha256}" not in named]:
            raise NodeError(
                ErrorCode.BOOTSTRAP_FAILED,
                f"{other[0].path} is not the file that the lock names",
                hint=f"it was changed after it was fetched; `rm -r {folder}` has it fetched again",
            )
        return files

    async def uv_binary(self, target: Target, emit: Emit) -> Path:
        """The locked uv for a platform: this keeper's own where it is that one and runs there, else from its wheel."""
        wanted = requirements.uv()
        same = importlib.metadata.version("uv") == wanted.version
        if same and target.runs_what_is_built_on(dataclasses.replace(Target.here(), libc_version=())):
            from uv import find_uv_bin

            return Path(find_uv_bin())
        folder = self.root / folder_name("uv", [wanted], target)
        check(folder / "uv")
        if not folder.is_dir():
            hear = pip.report_bytes(emit, "uv", f"fetching uv for {target.name}")
            async with pip.staging(self.root) as work:
                options = [*_platform_options(target), "--require-hashes"]
                await pip.download([wanted.line()], work / "wheel", options=options, on_line=hear)
                (wheel,) = (work / "wheel").glob("*.whl")
                (work / "uv").mkdir()
                _extract_uv(wheel, work / "uv" / "uv")
                pip.publish(work / "uv", folder)
        return folder / "uv"


def check(path: Path) -> None:
    """Raises ConfigError where somebody else can write `path`, in the cache, or put another in its place."""
    trusted_files.check(path, WHAT)


def uv_version() -> str:
    return requirements.uv().version


def folder_name(kind: str, lines: Sequence[requirements.Locked], target: Target) -> str:
    """Where in the cache what these lines are for a platform and its Python lies. kind: base, build or uv."""
    return f"{kind}-{_key(lines, target)}"


def _key(lines: Sequence[requirements.Locked], target: Target) -> str:
    """Names the folder of what these lines are for a platform and its Python."""
    parts = [*(line.line() for line in lines), *target.wheel_platforms(), *map(str, target.python)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _platform_options(target: Target) -> Sequence[str]:
    """pip's options for the wheels of another platform and Python."""
    platforms = target.wheel_platforms()
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", ".".join(map(str, target.python))]
    return [*options, *(word for platform in platforms for word in ("--platform", platform))]


def _extract_uv(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:  # the locked one, so there is nothing to fear from it
        (name,) = (name for name in archive.namelist() if re.search(r"\.data/scripts/uv$", name))
        target.write_bytes(archive.read(name))
    target.chmod(0o700)
