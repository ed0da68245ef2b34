"""Of the machines that may build llama.cpp for a node, the one with most cores does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import ConnectError
from rbee.base.events import Event, Notice
from rbee.base.settings import Settings
from rbee.context import Context
from rbee.inventory import Inventory, Node
from rbee.node.probe import Probe
from rbee.node.session import PerNode
from rbee.setup import elsewhere
from rbee.setup.base.platforms import Target
from rbee.setup.elsewhere import BUILD_MB, obstacle_of
from rbee.setup.index.builders import Place, best_place, may_build_for
from rbee.setup.wheels import toolkit
from rbee.setup.wheels.building import CUDA_MB
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection
from tests.doubles.session import session_over

PROBE = Probe(
    system="Linux",
    machine="x86_64",
    libc="glibc 2.31",
    home="/home/bee/.rbee/node",
    python="/usr/bin/python3",
    python_version=(3, 11, 2),
    disk_free_mb=10_000,
    compiler="/usr/bin/c++",
    cores=8,
)
TARGET = Target.of(PROBE, (3, 11))
GPU1 = Node("gpu1", host="192.0.2.1", builds_from=("big", "small"))
NODES = {
    node.name: node for node in (GPU1, Node("big", host="192.0.2.2"), Node("small", host="192.0.2.3"), Node("local"))
}


@pytest.mark.parametrize(
    ("places", "best"),
    [
        ([Place("a", 4), Place("b", 8)], "b"),
        ([Place("a", 8), Place("b", 8)], "a"),
        ([Place("a", 4), Place("b", 8, "no compiler")], "a"),
        ([Place("a", 4, "no room"), Place("b", 2)], "b"),
        ([Place("a", 4, "no room")], None),
        ([], None),
    ],
)
def test_the_one_with_most_cores_that_can_and_of_several_the_first(places: list[Place], best: str | None) -> None:
    found = best_place(places)
    assert (found.name if found else None) == best


@pytest.mark.parametrize(
    ("node", "anywhere", "allowed"),
    [
        (GPU1, True, ["big", "small"]),
        (GPU1, False, []),
        (replace(GPU1, builds_from=()), True, []),
        (replace(GPU1, builds_from=("gpu1", "local", "nobody", "https://w.example", "big", "big")), True, ["big"]),
        (Node("local", builds_from=("big",)), True, []),
    ],
)
def test_who_may_build_for_a_node_is_what_the_inventory_says(node: Node, anywhere: bool, allowed: list[str]) -> None:
    assert [other.name for other in may_build_for(node, NODES, anywhere=anywhere)] == allowed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"compiler": ""}, "no compiler"),
        ({"libc": "glibc 2.36"}, "what it builds does not run there"),
        ({"libc": "musl 1.2.4"}, "what it builds does not run there"),
        ({"machine": "aarch64"}, "what it builds does not run there"),
        ({"system": "FreeBSD"}, "what it builds does not run there"),
        ({"home_noexec": True}, "/home/bee/.rbee/node cannot be used"),
        ({"disk_free_mb": BUILD_MB - 1}, f"{BUILD_MB - 1} MB free, {BUILD_MB} needed"),
    ],
)
def test_what_keeps_a_node_from_building(change: dict[str, object], said: str) -> None:
    assert obstacle_of(replace(PROBE, **change), TARGET, "cpu") == said  # type: ignore[arg-type]


GPU_TARGET = replace(TARGET, cuda=(13, 0), gpus=frozenset({(8, 9)}))


@pytest.mark.parametrize(
    ("target", "backend", "anywhere"),
    [
        (TARGET, "cpu", True),
        (GPU_TARGET, "cuda", True),
        (replace(GPU_TARGET, cuda=(12, 4)), "cuda", False),
        (replace(GPU_TARGET, libc="musl"), "cuda", False),
        (TARGET, "cuda", False),
        (TARGET, "vulkan", False),
        (TARGET, "rocm", False),
    ],
)
def test_where_a_compiler_for_cpp_is_all_it_takes(target: Target, backend: str, anywhere: bool) -> None:
    assert toolkit.compiles_anywhere(target, backend) is anywhere


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"libc": "glibc 2.26"}, "CUDA's compiler does not run there"),
        ({"disk_free_mb": CUDA_MB - 1}, f"{CUDA_MB - 1} MB free, {CUDA_MB} needed"),
    ],
)
def test_a_node_without_a_gpu_builds_for_cuda_with_the_toolkit_that_is_fetched(
    change: dict[str, object], said: str
) -> None:
    assert obstacle_of(replace(PROBE, **change), GPU_TARGET, "cuda") == said  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keeper", "own", "others", "chosen", "said"),
    [
        (2, 8, (32, 4), "big", "built on big, which has most cores, 32 (this machine: 2 cores; gpu1: 8 cores; small:"),
        (2, 8, (None, 16), "small", "big: it is off)"),
        (64, 8, (32, 4), None, "built on this machine, which has most cores, 64 ("),
        (None, 8, (4, 4), None, "built on gpu1, which has most cores, 8 (this machine: it cannot build for that node;"),
        (None, None, (4, 4), "big", "gpu1: no compiler"),
    ],
)
async def test_the_choice_is_told_with_why(
    keeper: int | None,
    own: int | None,
    others: Sequence[int | None],
    chosen: str | None,
    said: str,
    context: tuple[Context, list[Event]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """None: it cannot build, or is off."""

    async def seen(_context: Context, nodes: Sequence[Node], *_: object, **__: object) -> list[PerNode[Probe]]:
        off = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "it is off")
        return [
            PerNode(node, replace(PROBE, cores=cores)) if cores else PerNode(node, error=off)
            for node, cores in zip(nodes, others, strict=True)
        ]

    monkeypatch.setattr(elsewhere, "on_each", seen)
    monkeypatch.setattr(elsewhere, "cores_here", lambda: keeper or 99)
    probe = replace(PROBE, cores=own) if own else replace(PROBE, compiler="")
    session = session_over(FakeConnection(), GPU1, context[0])
    root = context[0].settings.home / "not/there/yet"
    node = await elsewhere.choose(session, probe, TARGET, "cpu", root, builds_here=keeper is not None)
    assert (node.name if node else None) == chosen
    again = await elsewhere.choose(session, probe, GPU_TARGET, "cuda", root, builds_here=keeper is not None)
    assert again == node
    assert await elsewhere.choose(session, probe, TARGET, "vulkan", root, builds_here=True) is None
    notice, for_cuda = (event for event in context[1] if isinstance(event, Notice))
    assert said in notice.text
    assert for_cuda.text == notice.text.replace("llama.cpp", "llama.cpp for cuda", 1)


async def test_without_builds_from_nobody_is_asked(
    context: tuple[Context, list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "on_each", None)
    session = session_over(FakeConnection(), replace(GPU1, builds_from=()), context[0])
    assert await elsewhere.choose(session, PROBE, TARGET, "cpu", context[0].settings.home, builds_here=True) is None
    assert context[1] == []


@pytest.fixture
def context(tmp_path: Path) -> tuple[Context, list[Event]]:
    events: list[Event] = []
    settings = Settings(home=tmp_path)
    return Context(settings, Inventory(NODES), None, "0" * 16, emit=events.append), events  # type: ignore[arg-type]
