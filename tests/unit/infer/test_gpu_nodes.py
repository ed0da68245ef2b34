"""Which of several nodes `--wait-for-gpu` takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from rbee.base.errors import ConnectError
from rbee.base.events import Notice
from rbee.base.settings import Settings
from rbee.infer import gpu_nodes
from rbee.infer.gpu_nodes import gpus_first
from rbee.inventory import Inventory, Node
from rbee.node.probe import Gpu, Probe
from rbee.node.session import PerNode
from rbee.setup.wheels.cache import WheelCache
from rbee_remote.protocol import ErrorCode

ADA = Gpu("nvidia", "NVIDIA L4", 24000, 23000, "580.65", (8, 9))
HOPPER = Gpu("nvidia", "NVIDIA H100", 80000, 79000, "580.65", (9, 0))
BARE = Probe(
    system="Linux", machine="x86_64", libc="glibc 2.36", home="/h", python="/usr/bin/python3",
    python_version=(3, 11, 2), cuda=(13, 0),
)  # fmt: skip
PROBES = {"ada": replace(BARE, gpus=(ADA,)), "hopper": replace(BARE, gpus=(HOPPER,)), "plain": replace(BARE, cuda=())}


@dataclass
class Session:
    context: Any
    said: list[str] = field(default_factory=list)

    def emit(self, event: object) -> None:
        assert isinstance(event, Notice)
        self.said.append(event.text)


@pytest.mark.parametrize(
    ("names", "built", "can", "order"),
    [
        (("plain", "ada", "hopper"), "hopper", True, ["hopper", "ada"]),  # no build is waited for where one is there
        (("plain", "ada", "hopper"), "", True, ["ada", "hopper"]),
        (("plain", "gone", "ada"), "", True, ["ada"]),
        (("plain", "ada"), "", False, ["plain", "ada"]),  # as with one node: a CPU, and that is said
        (("plain", "gone"), "", True, ["plain", "gone"]),
    ],
)
async def test_those_with_a_gpu_are_taken_and_one_that_works_now_comes_first(
    names: Sequence[str], built: str, can: bool, order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def seen(_: object, nodes: Sequence[Node], _ask: object, *, deadline_s: float) -> list[PerNode[Probe]]:
        del deadline_s
        gone = ConnectError(ErrorCode.CONNECTION_TIMEOUT, "no answer")
        return [PerNode(node, PROBES.get(node.name), None if node.name in PROBES else gone) for node in nodes]

    def find(_: WheelCache, target: Any, *__: object) -> object:
        gpus = {gpu.compute for gpu in PROBES[built].gpus} if built else set()
        return object() if target.gpus & gpus else None

    monkeypatch.setattr(gpu_nodes, "on_each", seen)
    monkeypatch.setattr(WheelCache, "find_llama", find)
    monkeypatch.setattr(WheelCache, "can_get", lambda *_: can)
    nodes = {name: Node(name, host="192.0.2.1") for name in names}
    context = type("Context", (), {"settings": Settings(home=tmp_path), "inventory": Inventory(nodes)})
    session: Any = Session(context)
    assert [node.name for node in await gpus_first(session, list(nodes.values()))] == order
    assert len(session.said) == (1 if order[0] == "plain" else 0)
