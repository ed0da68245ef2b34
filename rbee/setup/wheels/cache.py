"""The keeper's wheel cache: what a node's runtime is made of, fetched or built once.

    base-KEY/                   the wheels of base.txt and constraints.txt for one platform and Python, and bytecode of
                                some of them (bytecode.py), which may come later
    build-KEY/                  the wheels of build.txt, likewise
    uv-KEY/uv                   what fetches a Python for a node, or compiles there, likewise
    llama/BACKEND-PLATFORM/     one llama-cpp-python wheel and `wheel.json`, which says what it needs

Rules
- Folders get their final name when they are whole: one that exists is complete, and is never changed.
- What is here is found without a network, and used where nobody else can have put it there: it runs here and on nodes.
- What is fetched is what a lock names, by its SHA-256; a wheel of an index that gives no hash has that index's name.
- What a node built lies in a folder of its own, and serves whom `Builders` says.
- One build at a time: the lock lies in the cache, so keepers that share it share its builds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.base.errors import NodeError
from rbee.base.events import Emit, Event, Notice
from rbee.base.files import LocalFile, file_sha256
from rbee.base.locks import file_lock
from rbee.base.settings import Settings, expand
from rbee.inventory import WheelIndex
from rbee.setup.base import pip
from rbee.setup.base.platforms import Target, Version
from rbee.setup.base.stoppable import Stop, in_thread, never
from rbee.setup.index import asked as wheel_index
from rbee.setup.index.builders import KEEPER, Builders, is_of_index
from rbee.setup.wheels import building, cuda_code, kept, portable
from rbee.setup.wheels import check as wheel_check
from rbee.setup.wheels.llama_wheel import LlamaWheel
from rbee.setup.wheels.locked import LockedWheels, check
from rbee_remote.protocol import ErrorCode

ENV_CACHE = "RBEE_WHEEL_CACHE"
#: In the cache: held by who builds.
BUILD_LOCK = "build.lock"
#: Characters of why an index has none, which quotes what it gave.
_LONGEST_REASON = 300

#: Compiles on a node, and returns the wheel (in the folder it was given) and the node's own libraries for it.
BuildOnNode = Callable[[str, Path, Emit], Awaitable[tuple[Path, portable.FindLibrary]]]
#: Told whether this machine can build: who else is to, as `Builders` calls it, and how. None for nobody else.
ChooseBuilder = Callable[[bool], Awaitable[tuple[str, BuildOnNode] | None]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a wheel comes from. built_on: who chose what is in it, as `Builders` calls it; "" for this machine.
    find_library: the libraries that it needs and that may lack elsewhere. cpu: what a processor needs for it."""

    built_on: str = ""
    find_library: portable.FindLibrary = portable.local_library
    cpu: str = ""


@dataclass(frozen=True, slots=True)
class Ways:
    """How a wheel may be made besides here. on_node: on the node that it is for, None where that has no compiler.
    choose: asked where one is built. without: the SHA-256 of a prebuilt one that does not run there; then no index is
    asked."""

    on_node: BuildOnNode | None = None
    choose: ChooseBuilder | None = None
    without: str = ""


class WheelCache(LockedWheels):
    """The cache at `root`. logs: where the log of a failed build goes."""

    def __init__(self, root: Path, logs: Path) -> None:
        super().__init__(root)
        self._logs = logs

    @classmethod
    def of(cls, settings: Settings) -> WheelCache:
        """`$RBEE_WHEEL_CACHE`, which several homes can share, else below the keeper's home."""
        chosen = os.environ.get(ENV_CACHE)
        return cls(expand(chosen).absolute() if chosen else settings.cache / "wheels", settings.log)

    def find_llama(self, target: Target, backend: str, builders: Builders = KEEPER) -> LocalFile | None:
        """The llama-cpp-python wheel of a backend that runs on `target`, if the cache has one by `builders`."""
        return next((known.file_in(folder) for folder, known in self._usable(target, backend, builders)), None)

    def _usable(self, target: Target, backend: str, builders: Builders) -> Sequence[tuple[Path, LlamaWheel]]:
        """Those by `builders`, the best first: built here or by the node itself, and for any processor."""
        builders = builders.with_others(wheel_index.named_now())
        found = [item for item in self._fitting(target, backend) if builders.include(item[1].built_on)]
        return sorted(found, key=lambda item: (item[1].built_on not in ("", builders.own), len(item[1].cpu)))

    async def _unchanged(
        self, target: Target, backend: str, builders: Builders, without: str, emit: Emit
    ) -> LocalFile | None:
        """As `find_llama`, and still as it was made. What is damaged is passed over, with a notice."""
        for folder in self._llama_folders():
            if LlamaWheel.of(folder) is None:
                emit(Notice(f"{folder} is damaged and not used; `rbee wheels prune` removes it"))
        for folder, known in self._usable(target, backend, builders):
            if known.sha256 == without:
                continue
            if await asyncio.to_thread(known.is_unchanged, folder):
                return known.file_in(folder)
            emit(Notice(f"{folder / known.file} was changed after it was made, and is not used"))
        return None

    def built_elsewhere(self, target: Target, backend: str, builders: Builders = KEEPER) -> str:
        """The name of a node or index whose build would run on `target`, "" for none. That is the user's decision."""
        named = [index.name for index in wheel_index.indexes(backend, target, builders) if not index.vouchers()]
        built = [known.built_on for _, known in self._fitting(target, backend)]
        # What a hash or a key of another node's index vouches for has no name that could be allowed.
        names = [name.split()[0] for name in built if name and not re.match(r"(sha256|signed):", name)]
        return next((name for name in [*names, *named] if not builders.include(name)), "")

    def _fitting(self, target: Target, backend: str) -> Iterator[tuple[Path, LlamaWheel]]:
        for folder in self._llama_folders():
            known = LlamaWheel.of(folder)
            if known and known.fits(target, backend):
                check(folder / known.file)
                yield folder, known

    def _llama_folders(self) -> Sequence[Path]:
        return sorted(path for path in self.root.glob("llama/[!.]*") if path.is_dir())

    def is_prebuilt(self, sha256: str) -> bool:
        """Whether the wheel of that hash is of an index."""
        found = (known for folder in self._llama_folders() if (known := LlamaWheel.of(folder)))
        return any(known.sha256 == sha256 and is_of_index(known.built_on) for known in found)

    def cuda_line(self, sha256: str) -> int:
        """The line of CUDA whose libraries the wheel of that hash loads, 0 for none."""
        found = (known for folder in self._llama_folders() if (known := LlamaWheel.of(folder)))
        return next((known.code.line for known in found if known.sha256 == sha256 and known.code), 0)

    def add_wheel(
        self,
        path: Path,
        backend: str,
        *,
        libc: str = "",
        origin: Origin = Origin(),
        stop: Stop = never,
    ) -> LocalFile:
        """Take a llama-cpp-python wheel into the cache, made fit to travel; one that is there already serves as it is.

        libc: the C library it was built with, for a name that does not say it: by default that of this machine.
        Raises NodeError for a wheel that is none.
        """
        system, machine, named = _built_for(path)
        libc = named or libc or Target.here().libc
        folder = self.root / "llama" / f".adding-{os.urandom(6).hex()}"
        folder.mkdir(parents=True)
        try:
            wheel = folder / path.name
            if system == "Linux":
                portable.make_portable(path, wheel, origin.find_library, stop)
            else:
                shutil.copyfile(path, wheel)
            version = max(portable.needed_glibc(wheel, stop), _named_version(path))
            sha256, project = file_sha256(wheel), path.name.split("-")[1]
            code = cuda_code.of_wheel(wheel, stop) if backend == "cuda" else None
            text = code.text if code else ""
            by, cpu = origin.built_on, origin.cpu
            known = LlamaWheel(path.name, sha256, project, backend, system, machine, libc, version, by, cpu, text)
            (folder / "wheel.json").write_text(json.dumps(dataclasses.asdict(known), indent=1), encoding="utf-8")
            final = folder.with_name(_folder_name(known))
            there = LlamaWheel.of(final) if final.exists() else None
            if final.exists() and not (there and there.is_unchanged(final)):
                final.rename(damaged := folder.with_name(f"{folder.name}-damaged"))
                shutil.rmtree(damaged, ignore_errors=True)
            pip.publish(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        known = LlamaWheel.read(final / "wheel.json")
        check(final / known.file)
        return known.file_in(final)

    async def llama_wheel(
        self,
        target: Target,
        backend: str,
        emit: Emit,
        *,
        builders: Builders = KEEPER,
        ways: Ways = Ways(),
    ) -> LocalFile:
        """The llama-cpp-python wheel of a backend: from the cache, an index of prebuilt ones, or built.

        builders: whose builds may run there. Raises NodeError NODE_UNSUPPORTED when there is no way to get one,
        BOOTSTRAP_FAILED when the way that was tried failed.
        """
        if found := await self._unchanged(target, backend, builders, ways.without, emit):
            return found
        if not ways.without and (found := await self.from_indexes(target, backend, emit, builders)):
            return found
        here = building.builds_here(target, backend)
        built_on, build = "" if here else builders.own, None if here else ways.on_node
        if ways.choose and (other := await ways.choose(here)):
            built_on, build = other
        if not here and build is None:
            raise building.no_way(target, backend, self.built_elsewhere(target, backend, builders))
        check(self.root)
        async with file_lock(self.root / BUILD_LOCK, "builds llama.cpp, which takes minutes", emit):
            if found := await self._unchanged(target, backend, builders, ways.without, _say_nothing):
                return found
            flags = building.cmake_flags(target, backend)
            with kept.build_folder(self.root, flags, built_on) as folder:
                if build is None:
                    wheel, origin = await self._build_here(target, backend, flags, folder, emit), Origin()
                else:
                    wheel, find = await build(flags, folder, emit)
                    origin = Origin(built_on, find)
                return await in_thread(
                    lambda stop: self.add_wheel(wheel, backend, libc=target.libc, origin=origin, stop=stop)
                )

    async def _build_here(self, target: Target, backend: str, flags: str, folder: Path, emit: Emit) -> Path:
        begun, cores = kept.is_begun(folder), building.cores_here()
        if backend == "cuda" and not begun:
            await asyncio.to_thread(building.check_room, folder)
        emit(building.forecast("this machine", cores, backend, is_begun=begun))
        tools = await self.tool_wheels(Target.here(), emit)
        takes_cuda = backend == "cuda" and building.has_toolkit_here(target)
        parts = await self.toolkit_wheels(Target.here(), emit) if takes_cuda else []
        return await building.build_here(flags, folder, tools, self.build_log(backend), emit, parts)

    def can_get(self, target: Target, backend: str, builders: Builders = KEEPER) -> bool:
        """Whether `llama_wheel` has a way that needs neither the node's compiler nor an index that keeps its word."""
        return self.find_llama(target, backend, builders) is not None or building.builds_here(target, backend)

    def may_get(self, target: Target, backend: str, builders: Builders = KEEPER) -> bool:
        """Whether it has a way, perhaps, other than the node's own compiler."""
        asked = wheel_index.indexes(backend, target, builders)
        named = any(wheel_index.may_serve(index, builders) for index in asked)
        return named or self.can_get(target, backend, builders)

    def build_log(self, backend: str) -> Path:
        return self._logs / f"build-llama-cpp-python-{backend}.log"

    async def from_indexes(
        self, target: Target, backend: str, emit: Emit, builders: Builders = KEEPER
    ) -> LocalFile | None:
        """A prebuilt wheel that runs on `target`, from the first index that has one; why others have none is said."""
        for index in wheel_index.indexes(backend, target, builders):
            if not wheel_index.may_serve(index, builders):
                emit(Notice(wheel_index.passed_over(index)))
                continue
            try:
                return await self._from_index(index, target, backend, emit)
            except (NodeError, OSError) as error:
                said = " ".join(str(getattr(error, "message", error)).split())[:_LONGEST_REASON]
                emit(Notice(f"no llama.cpp for {backend} from {index.name}: {said}"))
        return None

    async def _from_index(self, index: WheelIndex, target: Target, backend: str, emit: Emit) -> LocalFile:
        check(self.root)
        async with pip.staging(self.root) as folder:
            wheel = await wheel_index.fetch(index, backend, target, folder, emit)
            vouched = f"sha256:{file_sha256(wheel)}" if index.sha256 else next(iter(index.vouchers()), index.name)

            def add(stop: Stop) -> LocalFile:
                cpu = " ".join(sorted(wheel_check.needed_cpu(wheel, target, stop)))
                if backend == "cuda":
                    wheel_check.check_cuda(wheel, target, stop)
                origin = Origin(vouched, wheel_check.local_libraries(target), cpu)
                return self.add_wheel(wheel, backend, libc=target.libc, origin=origin, stop=stop)

            added = await in_thread(add)
        if self.find_llama(target, backend, Builders("", frozenset({vouched}))) is None:
            raise NodeError(ErrorCode.NODE_UNSUPPORTED, f"it does not run on {target.name}")
        emit(Notice(f"llama.cpp for {backend} is the prebuilt one of {index.name}"))
        return added


def _say_nothing(_: Event) -> None:
    """It has been said."""


def _built_for(wheel: Path) -> tuple[str, str, str]:
    """System, machine and C library in a wheel's name; the library is "" where the name does not say it."""
    tag = wheel.stem.rsplit("-", 1)[-1]
    machine = "aarch64" if tag.endswith(("aarch64", "arm64")) else "x86_64"
    if tag.startswith("macosx"):
        return "Darwin", machine, "macos"
    return "Linux", machine, "musl" if "musllinux" in tag else "glibc" if "manylinux" in tag else ""


def _named_version(wheel: Path) -> Version:
    """The oldest C library that installers take a wheel for, by its name; () for a name that does not say it."""
    named = [(int(major), int(minor)) for major, minor in re.findall(r"linux_(\d+)_(\d+)_", wheel.name)]
    return min(named, default=())


def _folder_name(wheel: LlamaWheel) -> str:
    """Of what differs in anything but its contents."""
    other = f"{wheel.built_on} {wheel.cpu} {wheel.cuda}".strip()
    by = f"-by-{hashlib.sha256(other.encode()).hexdigest()[:12]}" if other else ""
    built = Target(wheel.system, wheel.machine, wheel.libc, tuple(wheel.libc_version), ())
    return f"{wheel.backend}-{wheel.version}-{built.name}{by}"
