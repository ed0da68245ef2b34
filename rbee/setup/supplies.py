"""What a node's runtime is made of, got into the cache: fetched, or built here, there, or on another node."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rbee.base.events import Emit
from rbee.base.files import LocalFile
from rbee.inventory import Node
from rbee.node.probe import Probe
from rbee.node.session import NodeSession, open_session
from rbee.setup import elsewhere, own_way, prerequisites
from rbee.setup.base import cuda, node_scripts
from rbee.setup.base.platforms import Target
from rbee.setup.base.put_files import Named
from rbee.setup.foundation import Foundation
from rbee.setup.index.builders import Builders
from rbee.setup.runtime import Runtime, better, say_how
from rbee.setup.wheels import building, kept, portable, toolkit
from rbee.setup.wheels.cache import BuildOnNode, Ways, WheelCache
from rbee.setup.wheels.node_build import NodeBuilder


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a bootstrap of a node takes from the cache. packages: a folder. was_there: llama was neither built nor
    fetched now."""

    target: Target
    backend: str
    llama: LocalFile
    packages: Path
    uv: Path
    was_there: bool


async def gather(session: NodeSession, probe: Probe, along: Sequence[Target] = ()) -> Gathered:
    """Have in the cache all that a bootstrap of the node would take from there; one that has to build it, builds it.

    along: other machines that a build for CUDA is to serve too. Raises as `ensure`.
    """
    prerequisites.check_system(probe)
    cache = WheelCache.of(session.context.settings)
    builders = Builders.of(session.node, session.context.inventory.nodes)
    chosen = Runtime.choose(probe, session.node, cache, builders)
    runtime = await better(chosen, session, probe, cache, builders)
    if runtime is chosen and chosen.better:
        runtime = chosen = Runtime.choose(probe, session.node, cache, builders, wait_for_gpu=True)
    say_how(runtime, session, probe, cache, builders)
    joins = runtime is chosen and runtime.backend == "cuda"
    work = Supplies(session, probe, cache, builders, runtime, tuple(along) if joins else ())
    was_there = runtime is chosen and cache.find_llama(work.serves, runtime.backend, builders) is not None
    *packages, llama = await work.get_wheels(None)
    await work.get_libraries(llama)
    uv = await cache.uv_binary(runtime.target, session.emit)
    return Gathered(runtime.target, runtime.backend, llama, packages[0].path.parent, uv, was_there)


@dataclass(frozen=True, slots=True)
class Supplies:
    """Of one node. along: other machines that a build for CUDA is to serve too."""

    session: NodeSession
    probe: Probe
    cache: WheelCache
    builders: Builders
    runtime: Runtime
    along: tuple[Target, ...] = ()

    @property
    def serves(self) -> Target:
        """What a build of llama.cpp is made for: the runtime's platform, perhaps more."""
        return cuda.joined(self.runtime.target, self.along) if self.along else self.runtime.target

    @property
    def ground(self) -> Foundation:
        return Foundation(self.session, self.probe, self.cache, self.runtime.target, self.runtime.backend)

    async def get_wheels(self, place: node_scripts.Place | None, without: str = "") -> list[LocalFile]:
        """Everything of the runtime, in the cache, llama-cpp-python last.

        place: where the node can build; None has it made ready for that first, if it comes to it.
        without: as of `Ways`.
        """
        target, backend = self.serves, self.runtime.backend

        async def on_node(flags: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
            return await self._build(place, flags, folder, emit)

        async def choose(builds_here: bool) -> tuple[str, BuildOnNode] | None:
            session, root = self.session, self.cache.root
            other = await elsewhere.choose(session, self.probe, target, backend, root, builds_here=builds_here)
            if other is None:
                return None
            return Builders.of(other, session.context.inventory.nodes).own, partial(self._build_on, other)

        llama = await self.cache.llama_wheel(
            target,
            backend,
            self.session.emit,
            builders=self.builders,
            ways=Ways(on_node if self.probe.compiler else None, choose, without),
        )
        return [*await self.cache.base_wheels(self.runtime.target, self.session.emit), llama]

    async def get_libraries(self, llama: LocalFile) -> list[LocalFile]:
        """In the cache: CUDA's that `llama` loads and the node has not installed."""
        line = await self._cuda_line(llama)
        return await self.cache.cuda_libraries(line, self.runtime.target, self.session.emit) if line else []

    async def fetch_libraries(self, place: node_scripts.Place, llama: LocalFile) -> Sequence[Named]:
        """On the node, which fetched them itself: as `get_libraries`, or none."""
        line = 0 if self.session.node.is_local else await self._cuda_line(llama)
        if not line:
            return []
        wanted, target = toolkit.libraries(line), toolkit.fetched_for(self.runtime.target)
        return await own_way.fetch(self.session, place, wanted, target, self.cache.root, self.probe.libraries)

    async def _cuda_line(self, llama: LocalFile) -> int:
        """The line of CUDA whose libraries `llama` loads and the node lacks, 0 for none."""
        line = await asyncio.to_thread(self.cache.cuda_line, llama.sha256)
        return line if line in cuda.brought(self.runtime.target) - self.probe.cudart else 0

    async def _build(
        self, place: node_scripts.Place | None, flags: str, folder: Path, emit: Emit
    ) -> tuple[Path, portable.FindLibrary]:
        """Compile on this node. place: as of `get_wheels`."""
        there = place or await self._ready_to_build()
        await self.ground.upload_uv()
        log, name = self.cache.build_log(self.runtime.backend), self.session.node.name
        begun = kept.is_begun(folder)
        forecast = building.forecast(name, self.probe.cores, self.runtime.backend, is_begun=begun)
        builder = NodeBuilder(self.session.connection, name, there, log, self.cache, forecast)
        return await builder.build(self.runtime.target, flags, folder, emit)

    async def _build_on(self, other: Node, flags: str, folder: Path, emit: Emit) -> tuple[Path, portable.FindLibrary]:
        """Compile on another node for this one."""
        async with open_session(self.session.context, other) as session:
            probe = await session.probe()
            builders = Builders.of(other, session.context.inventory.nodes)
            runtime = Runtime.choose(probe, replace(other, backend=self.runtime.backend), self.cache, builders)
            target = replace(runtime.target, cuda=self.serves.cuda, gpus=self.serves.gpus)  # whose toolkit compiles
            there = Supplies(session, probe, self.cache, builders, replace(runtime, target=target))
            return await there._build(None, flags, folder, emit)

    async def _ready_to_build(self) -> node_scripts.Place:
        """Put on the node what a build there runs with."""
        prerequisites.check(self.probe, self.runtime.backend, makes_runtime=True)
        await self.ground.prepare()
        return await self.ground.get_python()
