"""Which nodes one build of llama.cpp for CUDA serves, where several are prepared at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rbee.inventory import Node
from rbee.node.probe import Probe
from rbee.setup.base import cuda
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import Builders, may_build_for
from rbee.setup.runtime import Runtime
from rbee.setup.wheels import toolkit
from rbee.setup.wheels.cache import WheelCache


@dataclass(frozen=True, slots=True)
class SharedBuild:
    """head: the node it is made for first. along: those that take it then, by name."""

    head: str
    target: Target
    along: Mapping[str, Target]

    @property
    def said(self) -> str:
        line = cuda.line(self.target)
        kind = f"{self.target.machine}, {self.target.libc}{f', CUDA {line.major}' if line else ''}"
        return f"{', '.join([self.head, *self.along])} ({kind}: {self.architectures or 'all architectures'})"

    @property
    def architectures(self) -> str:
        return cuda.architectures([self.target, *self.along.values()])


def plan(probes: Sequence[tuple[Node, Probe]], nodes: Mapping[str, Node], cache: WheelCache) -> list[SharedBuild]:
    """The builds for CUDA that these nodes want. Those that have one in the cache want none."""
    wanted: dict[str, Target] = {}
    builders = {node.name: Builders.of(node, nodes) for node, _ in probes}
    for node, probe in probes:
        runtime = Runtime.choose(probe, node, cache, builders[node.name], wait_for_gpu=True)
        if runtime.backend == "cuda" and not cache.find_llama(runtime.target, "cuda", builders[node.name]):
            wanted[node.name] = runtime.target
    by_name = {node.name: node for node, _ in probes}
    trusted = {name: _may_build(by_name[name], wanted[name], nodes, cache) for name in wanted}

    def takers(head: str, group: Sequence[str]) -> list[str]:
        return [name for name in group if name != head and all(map(builders[name].include, trusted[head]))]

    found = []
    for group in cuda.groups(wanted):
        left = group
        while left:
            oldest = [name for name in left if wanted[name].libc_version == wanted[left[0]].libc_version]
            head = max(oldest, key=lambda name: len(takers(name, left)))
            along = takers(head, left)
            found.append(SharedBuild(head, wanted[head], {name: wanted[name] for name in along}))
            left = [name for name in left if name not in (head, *along)]
    return found


def _may_build(node: Node, target: Target, nodes: Mapping[str, Node], cache: WheelCache) -> set[str]:
    """Who it may be that builds for a node, as `Builders` calls them: who takes a build trusts all of these."""
    own = Builders.of(node, nodes).own
    others = may_build_for(node, nodes, anywhere=toolkit.compiles_anywhere(target, "cuda"))
    here = cache.can_get(target, "cuda")
    return {*(Builders.of(other, nodes).own for other in others), *({own} if others or not here else {""})}


def said(builds: Sequence[SharedBuild]) -> str:
    """What is told of them, "" where there is nothing to share."""
    if sum(1 + len(build.along) for build in builds) < 2:
        return ""
    if len(builds) == 1:
        return f"one llama.cpp for CUDA serves {builds[0].said}"
    why = "another processor, C library or CUDA, or a node that does not run what the other builds (builds_from)"
    return f"{len(builds)} builds for CUDA: {'; '.join(build.said for build in builds)}; what keeps them apart: {why}"
