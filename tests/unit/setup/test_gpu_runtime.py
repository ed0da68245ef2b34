"""Which backend `auto` is: the first by which the node's GPUs can be used and that there is a llama.cpp for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.files import LocalFile
from rbee.inventory import Node
from rbee.node.graphics import Card, Graphics, Icd
from rbee.node.probe import Gpu, Probe, parse
from rbee.setup.runtime import Runtime
from rbee.setup.wheels.cache import WheelCache

HEAD = b"system=Linux\nmachine=x86_64\nlibc=glibc 2.36\nhome=/h\npython=3.11.2 1 /usr/bin/python3\n"
RX = Card("renderD128", "amd", "AMD GPU 744c", "amdgpu", "yes", "render", architecture="gfx1100")
ICD, NVIDIA_ICD = Icd("radeon_icd.x86_64.json", "amd"), Icd("nvidia_icd.json", "nvidia")
WITH_ROCM = Graphics((RX,), (ICD,), "yes", "render", frozenset({"libamdhip64.so.6"}))
AMD, NVIDIA = Gpu("amd", RX.name), Gpu("nvidia", "NVIDIA L4", 24000, 23000, "550.54.15")


def probe(*gpus: Gpu, graphics: Graphics = Graphics()) -> Probe:  # noqa: B008 - a value
    return replace(parse(HEAD), gpus=gpus, graphics=graphics)


class Cache(WheelCache):
    """One that has what it is told."""

    def __init__(self, *backends: str) -> None:
        super().__init__(Path("/nowhere"), Path("/nowhere"))
        self.backends = backends

    def find_llama(self, target: object, backend: str, builders: object = None) -> LocalFile | None:
        return LocalFile(Path("/nowhere/llama.whl"), "0" * 64) if backend in self.backends else None


@pytest.mark.parametrize(
    ("node", "cache", "expected"),
    [
        (probe(), ("cuda", "rocm", "vulkan"), "cpu"),
        (probe(AMD, graphics=WITH_ROCM), ("rocm", "vulkan"), "rocm"),
        (probe(AMD, graphics=WITH_ROCM), ("vulkan",), "vulkan"),
        (probe(AMD, graphics=replace(WITH_ROCM, kfd="no")), ("rocm", "vulkan"), "vulkan"),
        (probe(AMD, graphics=replace(WITH_ROCM, icds=())), ("vulkan",), "cpu"),
        (probe(AMD, graphics=WITH_ROCM), (), "cpu"),
        (probe(NVIDIA, graphics=Graphics(icds=(NVIDIA_ICD,))), ("vulkan",), "vulkan"),
        (probe(NVIDIA), ("vulkan",), "cpu"),
    ],
)
def test_the_first_backend_that_can_be_had(node: Probe, cache: tuple[str, ...], expected: str) -> None:
    assert Runtime.choose(node, Node("n"), Cache(*cache)).backend == expected


def test_a_gpu_that_is_left_idle_for_want_of_a_wheel_is_told_with_what_helps() -> None:
    runtime = Runtime.choose(probe(AMD, graphics=WITH_ROCM), Node("n"), Cache())
    assert "no llama.cpp for rocm yet; there is no llama.cpp for vulkan yet" in runtime.notice
    assert "`rbee wheels build --for n`" in runtime.notice
    assert Runtime.choose(probe(), Node("n"), Cache()).notice == ""
    assert Runtime.choose(probe(AMD, graphics=WITH_ROCM), Node("n", backend="cpu"), Cache()).notice == ""
