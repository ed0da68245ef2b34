"""A llama.cpp for GPUs that idle for want of one, built beside the gateway, and put to use when a node has a pause.

Rules
- It builds where that was asked for (`rbee serve --build-for-gpus`), in a process of its own with the least priority:
  `rbee wheels build`, which goes on where an interrupted one was, and makes one build for all that can share it.
- One at a time. A node is tried once for each runtime: what failed is told, and not tried again by this gateway.
- A node gets its runtime while it serves. Its hive is replaced when none of the gateway's requests runs there, and
  lets finish what others do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rbee.base import installation
from rbee.base.errors import RbeeError
from rbee.base.events import Notice
from rbee.context import Context
from rbee.gateway.base.views import NodeState
from rbee.gateway.nodes.fleet import NodeFleet
from rbee.gateway.nodes.node_link import NodeLink
from rbee.inventory import Node
from rbee.node.probe import Probe
from rbee.setup.base import child
from rbee.setup.index.builders import Builders
from rbee.setup.runtime import Runtime
from rbee.setup.wheels.cache import WheelCache

_log = logging.getLogger(__name__)

#: Seconds between two looks at what nodes could do better.
LOOK_S = 30.0
NICE = 19

#: Builds for nodes, by name. Returns "", or why there is no build for one of them.
Build = Callable[[Sequence[str]], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Outlook:
    """Of a node: the key of a runtime for its GPU that is to be built (build), or that only has to be put to use (use);
    "" for neither."""

    build: str = ""
    use: str = ""

    @classmethod
    def of(cls, probe: Probe, running: str, node: Node, cache: WheelCache, builders: Builders) -> Outlook:
        """running: the key of the runtime that its hive has."""
        now = Runtime.choose(probe, node, cache, builders)
        if now.backend != "cpu":
            is_made = now.key in probe.runtimes or cache.find_llama(now.target, now.backend, builders)
            return cls(use=now.key) if is_made and running and running != now.key else cls()
        if not now.better:
            return cls()
        later = Runtime.choose(probe, node, cache, builders, wait_for_gpu=True)
        return cls(build=later.key) if later.backend != "cpu" else cls()


@dataclass(slots=True)
class GpuBuilds:
    """build: as of `Build`. look_s: as of `LOOK_S`."""

    fleet: NodeFleet
    context: Context
    build: Build
    look_s: float = LOOK_S
    _tried: set[tuple[str, str]] = field(default_factory=set)
    _used: dict[tuple[str, str], asyncio.Task[None]] = field(default_factory=dict)

    async def run(self) -> None:
        """Until it is canceled; then what it has begun has ended."""
        try:
            while True:
                try:
                    await self._look()
                except (RbeeError, OSError) as error:
                    self.context.emit(Notice(f"no llama.cpp for idle GPUs for now: {error}"))
                await asyncio.sleep(self.look_s)
        finally:
            for task in self._used.values():
                task.cancel()
            await asyncio.gather(*self._used.values(), return_exceptions=True)

    async def _look(self) -> None:
        outlooks = [(link, await asyncio.to_thread(self._outlook, link)) for link in self.fleet.links]
        for link, outlook in outlooks:
            key = (link.node.name, outlook.use)
            if outlook.use and key not in self._used:
                self._used[key] = asyncio.create_task(
                    self._put_to_use(link, outlook.use), name=f"better runtime on {key[0]}"
                )
        wanted = {(link.node.name, outlook.build) for link, outlook in outlooks if outlook.build} - self._tried
        if wanted:
            self._tried |= wanted
            await self._build(sorted(name for name, _ in wanted))

    def _outlook(self, link: NodeLink) -> Outlook:
        session = link.session
        if link.view.state is not NodeState.UP or not session.is_attached:
            return Outlook()
        attached, nodes = session.attached, self.fleet.inventory.nodes
        cache = WheelCache.of(self.context.settings)
        return Outlook.of(attached.probe, attached.info.runtime, session.node, cache, Builders.of(session.node, nodes))

    async def _build(self, names: Sequence[str]) -> None:
        said = ", ".join(names)
        self.context.emit(Notice(f"building llama.cpp for the GPU of {said}, with the least priority"))
        if why := await self.build(names):
            hint = f"`rbee wheels build {' '.join(f'--for {name}' for name in names)}` tries it again"
            self.context.emit(Notice(f"no llama.cpp for the GPU of {said}: {why}; {hint}"))
        else:
            self.context.emit(Notice(f"llama.cpp for the GPU of {said} is ready"))

    async def _put_to_use(self, link: NodeLink, runtime: str) -> None:
        from rbee.setup.attach import attach, make_ready

        try:
            await make_ready(link.session)
            while link.in_flight:
                await self.fleet.wait_changed(self.fleet.version)
            attached = await attach(link.session)
            if attached.info.runtime == runtime:
                self.context.emit(Notice(f"{link.node.name} uses its GPU from now on"))
            else:  # why has been said
                self.context.emit(Notice(f"{link.node.name} uses its GPU once its hive is replaced"))
        except (RbeeError, OSError) as error:
            self.context.emit(Notice(f"{link.node.name} goes on without its GPU: {error}"))


def in_a_process(context: Context) -> Build:
    """`rbee wheels build`, with what this process runs with."""

    async def build(names: Sequence[str]) -> str:
        last = ""

        def hear(line: str) -> None:
            nonlocal last
            if line.strip():
                last = line.strip()[:300]
                _log.info("build: %s", last)

        where = ["--inventory", str(context.inventory.path.absolute())] if context.inventory.path else []
        nodes = [word for name in names for word in ("--for", name)]
        words = ["nice", "-n", str(NICE), *installation.command(), "wheels", "build", *where, *nodes]
        status = await child.run(words, hear, env={"RBEE_LINK": "off"})  # no connection is left behind
        return f"{last or 'no output'} (status {status})" if status else ""

    return build


@asynccontextmanager
async def beside(fleet: NodeFleet, context: Context) -> AsyncIterator[None]:
    """They run for as long as the context is entered."""
    task = asyncio.create_task(GpuBuilds(fleet, context, in_a_process(context)).run(), name="builds for idle GPUs")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
