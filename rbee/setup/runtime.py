"""Which runtime a node is to have: its Python and its backend, and what is to be told of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.base.events import Notice
from rbee.inventory import Node
from rbee.node import gpu_backends
from rbee.node.probe import Probe
from rbee.node.session import NodeSession
from rbee.setup import interpreter
from rbee.setup.base import cuda, requirements
from rbee.setup.base.platforms import Target
from rbee.setup.index.builders import KEEPER, Builders, builds_itself, may_build_for
from rbee.setup.wheels import building, toolkit
from rbee.setup.wheels.cache import WheelCache
from rbee_remote.protocol import OLDEST_PYTHON

#: What uv is asked for where a node has no Python, nor this keeper one for it; every wheel of the lock exists for it.
OWN_PYTHON = (3, 12)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Which runtime a node is to have. notice: what to tell the user when it has to be made. better: backends for GPUs
    that this one leaves idle, for want of a wheel or for another reason."""

    target: Target
    backend: str
    key: str
    notice: str = ""
    better: tuple[str, ...] = ()

    @classmethod
    def choose(
        cls, probe: Probe, node: Node, cache: WheelCache, builders: Builders = KEEPER, *, wait_for_gpu: bool = False
    ) -> Runtime:
        """The backend of the inventory; `auto` is the first candidate that has a way.

        wait_for_gpu: building llama.cpp for the GPU counts as a way. Else that takes too long for somebody who waits
        for an answer, which the CPU can give meanwhile.
        """
        target = target_of(probe)
        if node.backend != "auto":
            return cls._named(target, node.backend)
        if target.system == "Darwin":
            return cls._named(target, "metal")
        idle = []
        for backend in gpu_backends.usable(probe):
            runtime = cls._named(target, backend)
            obstacle = _obstacle(runtime, probe, cache, builders, wait_for_gpu=wait_for_gpu)
            if not obstacle:
                return runtime
            idle.append((backend, obstacle))
        return cls._named(target, "cpu", _notice(probe, node, idle), tuple(backend for backend, _ in idle))

    @classmethod
    def _named(cls, target: Target, backend: str, notice: str = "", better: tuple[str, ...] = ()) -> Runtime:
        libraries = toolkit.brought(target) if backend == "cuda" else []
        key = requirements.runtime_key(target, backend, building.cmake_flags(target, backend), libraries)
        return cls(target, backend, key, notice, better)


def target_of(probe: Probe) -> Target:
    """The platform that a runtime there is for, with the Python it will have."""
    python = probe.python_version if has_usable_python(probe) else None
    brought = None if python else interpreter.for_node(Target.of(probe, OWN_PYTHON))
    return Target.of(probe, python or (brought.version if brought else OWN_PYTHON))


def _obstacle(runtime: Runtime, probe: Probe, cache: WheelCache, builders: Builders, *, wait_for_gpu: bool) -> str:
    """Why a backend for GPUs is not to be used now, as a clause; "" where it is."""
    target, backend = runtime.target, runtime.backend
    if backend == "cuda" and target.cuda and cuda.line(target) is None:
        return cuda.why_no_line(target)
    if runtime.key in probe.runtimes or cache.find_llama(target, backend, builders):
        return ""
    if not wait_for_gpu:
        return f"there is no llama.cpp for {backend} yet"
    node_can = bool(probe.compiler) and backend == "cuda" and toolkit.has_wheels(target)
    others_may = bool(builders.machines) and toolkit.compiles_anywhere(target, backend)
    if node_can or others_may or cache.can_get(target, backend, builders):
        return ""
    return f"there is no llama.cpp for {backend}, and {building.what_lacks(target, backend)}"


def _notice(probe: Probe, node: Node, idle: Sequence[tuple[str, str]]) -> str:
    """What to tell of GPUs that are left idle, "" where there are none. idle: backends, each with why."""
    if not idle:
        return ""
    gpu = next(gpu.name for gpu in probe.gpus)
    why = "; ".join(dict.fromkeys(obstacle for _, obstacle in idle))
    unmade = any(obstacle.startswith("there is no llama.cpp") for _, obstacle in idle)
    hint = (
        f" (`rbee wheels build --for {node.name}` makes one; `rbee infer --wait-for-gpu` waits for that)"
        if unmade
        else ""
    )
    return f"using the CPU of {node.name}, not its {gpu}: {why}{hint}"


async def better(
    runtime: Runtime, session: NodeSession, probe: Probe, cache: WheelCache, builders: Builders
) -> Runtime:
    """For the node's GPU, where an index has a wheel for it, in place of one that leaves it idle."""
    for backend in runtime.better:
        if await cache.from_indexes(runtime.target, backend, session.emit, builders):
            return Runtime.choose(probe, session.node, cache, builders)
    return runtime


def say_how(runtime: Runtime, session: NodeSession, probe: Probe, cache: WheelCache, builders: Builders) -> None:
    """Tell what is not as one would expect. Raises NodeError NODE_UNSUPPORTED, BOOTSTRAP_FAILED where there is no way
    to a wheel."""
    if not cache.may_get(runtime.target, runtime.backend, builders):
        elsewhere = cache.built_elsewhere(runtime.target, runtime.backend)
        anywhere = toolkit.compiles_anywhere(runtime.target, runtime.backend)
        if may_build_for(session.node, session.context.inventory.nodes, anywhere=anywhere):
            return  # who of them does is seen when it comes to it
        if not probe.compiler:
            raise building.no_way(runtime.target, runtime.backend, elsewhere)
        session.emit(Notice(builds_itself(session.node, elsewhere)))
    if runtime.notice:
        session.emit(Notice(runtime.notice))
    if runtime.backend == "cpu" and session.node.backend == "auto":
        for idle in gpu_backends.idle(probe):
            session.emit(Notice(f"{idle.gpu} is not used: {idle.why}; {idle.fix}"))


def has_usable_python(probe: Probe) -> bool:
    return bool(probe.python) and (probe.python_version or (0,)) >= OLDEST_PYTHON
