"""Which runtime a node is to have: its Python and its backend, and what is to be told of that."""

from __future__ import annotations

from dataclasses import dataclass

from rbee.base.events import Notice
from rbee.inventory import Node
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup import interpreter
from rbee.setup.base import requirements
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import KEEPER, Builders, builds_itself, may_build_for
from rbee.setup.wheels import building
from rbee.setup.wheels.cache import WheelCache
from rbee_remote.protocol import OLDEST_PYTHON

#: What uv is asked for where a node has no Python, nor this keeper one for it; every wheel of the lock exists for it.
OWN_PYTHON = (3, 12)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Which runtime a node is to have. notice: what to tell the user when it has to be made."""

    target: Target
    backend: str
    key: str
    notice: str = ""

    @classmethod
    def choose(cls, probe: Probe, node: Node, cache: WheelCache, builders: Builders = KEEPER) -> Runtime:
        """The backend of the inventory; `auto` is the GPU's where a wheel for it can be had, else cpu."""
        python = probe.python_version if has_usable_python(probe) else None
        brought = None if python else interpreter.for_node(Target.of(probe, OWN_PYTHON))
        target = Target.of(probe, python or (brought.version if brought else OWN_PYTHON))
        if node.backend != "auto":
            return cls._named(target, node.backend)
        if target.system == "Darwin":
            return cls._named(target, "metal")
        if not any(gpu.vendor == "nvidia" for gpu in probe.gpus):
            return cls._named(target, "cpu")
        cuda = cls._named(target, "cuda")
        if cuda.key in probe.runtimes or cache.can_get(target, "cuda", builders):
            return cuda
        return cls._named(
            target,
            "cpu",
            "the node has an NVIDIA GPU, but there is no llama.cpp wheel for CUDA: using the CPU "
            '(backend = "cuda" in the inventory has one built on the node)',
        )

    @classmethod
    def _named(cls, target: Target, backend: str, notice: str = "") -> Runtime:
        return cls(
            target, backend, requirements.runtime_key(target, backend, building.cmake_flags(target, backend)), notice
        )


async def better(
    runtime: Runtime, session: NodeSession, probe: Probe, cache: WheelCache, builders: Builders
) -> Runtime:
    """For the node's GPU, where an index has a wheel for it, in place of one that leaves it idle."""
    if runtime.notice and await cache.from_indexes(runtime.target, "cuda", session.emit, builders):
        return Runtime.choose(probe, session.node, cache, builders)
    return runtime


def say_how(runtime: Runtime, session: NodeSession, probe: Probe, cache: WheelCache, builders: Builders) -> None:
    """Tell what is not as one would expect. Raises NodeError NODE_UNSUPPORTED, BOOTSTRAP_FAILED where there is no way
    to a wheel."""
    if not cache.may_get(runtime.target, runtime.backend, builders):
        elsewhere = cache.built_elsewhere(runtime.target, runtime.backend)
        if may_build_for(session.node, session.context.inventory.nodes, runtime.backend):
            return  # who of them does is seen when it comes to it
        if not probe.compiler:
            raise building.no_way(runtime.target, runtime.backend, elsewhere)
        session.emit(Notice(builds_itself(session.node, elsewhere)))
    if runtime.notice:
        session.emit(Notice(runtime.notice))


def has_usable_python(probe: Probe) -> bool:
    return bool(probe.python) and (probe.python_version or (0,)) >= OLDEST_PYTHON
