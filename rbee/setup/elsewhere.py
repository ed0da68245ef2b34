"""Which of the machines that may build llama.cpp for a node does so: the one with most cores, a compiler and a disk."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from rbee.base.events import Notice
from rbee.inventory import Node
from rbee.node.probe import Probe
from rbee.node.session import NodeSession, PerNode, on_each
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import Place, best_place, may_build_for
from rbee.setup.runtime import OWN_PYTHON
from rbee.setup.wheels import toolkit
from rbee.setup.wheels.building import CUDA_MB, cores_here

#: MB that a build for the CPU takes: the tools, the source, and what is compiled.
BUILD_MB = 1000
#: Seconds for a look at a node that may not be there.
LOOK_S = 15.0
HERE = "this machine"


async def choose(
    session: NodeSession, probe: Probe, target: Target, backend: str, cache: Path, *, builds_here: bool
) -> Node | None:
    """The node that is to build for that of `session`, None where it or this machine does as without `builds_from`.

    builds_here: whether this machine can, into `cache`. The choice is told, with why.
    """
    anywhere = toolkit.compiles_anywhere(target, backend)
    allowed = may_build_for(session.node, session.context.inventory.nodes, anywhere=anywhere)
    if not allowed:
        return None
    obstacle = await asyncio.to_thread(_no_room_in, cache, backend) if builds_here else "it cannot build for that node"
    places = [
        Place(HERE, cores_here(), obstacle),
        Place(session.node.name, probe.cores, obstacle_of(probe, target, backend)),
    ]
    seen = await on_each(session.context, allowed, lambda other: other.probe(), deadline_s=LOOK_S)
    places += [_place(each, target, backend) for each in seen]
    best = best_place(places)
    if best is None:
        tried = "; ".join(place.said for place in places)
        session.emit(Notice(f"no machine can build llama.cpp for {session.node.name} ({backend}): {tried}"))
        return None
    others = "; ".join(place.said for place in places if place is not best)
    what = "llama.cpp for cuda" if backend == "cuda" else "llama.cpp"
    session.emit(Notice(f"{what} is built on {best.name}, which has most cores, {best.cores} ({others})"))
    return next((each.node for each in seen if each.node.name == best.name), None)


def obstacle_of(probe: Probe, target: Target, backend: str) -> str:
    """What keeps a node from building for `target`, a clause; "" for nothing."""
    if not probe.compiler:
        return "no compiler"
    if probe.system not in {"Linux", "Darwin"} or not target.runs_what_is_built_on(Target.of(probe, OWN_PYTHON)):
        return "what it builds does not run there"
    if backend == "cuda" and not toolkit.compiles_on(Target.of(probe, OWN_PYTHON), target):
        return "CUDA's compiler does not run there"
    if not probe.home_writable or probe.home_noexec:
        return f"{probe.home} cannot be used"
    return _no_room(probe.disk_free_mb, backend)


def _no_room_in(cache: Path, backend: str) -> str:
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    return _no_room(shutil.disk_usage(there).free // 10**6, backend)


def _no_room(free_mb: int, backend: str) -> str:
    needed = CUDA_MB if backend == "cuda" else BUILD_MB
    return f"{free_mb} MB free, {needed} needed" if free_mb < needed else ""


def _place(each: PerNode[Probe], target: Target, backend: str) -> Place:
    if each.value is None:
        return Place(each.node.name, 0, each.error.message if each.error else "no answer")
    return Place(each.node.name, each.value.cores, obstacle_of(each.value, target, backend))
