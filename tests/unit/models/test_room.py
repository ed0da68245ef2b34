"""How large a model has space on a node, and that it is said where a ref leaves open which file is meant."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rbee.inventory import Node
from rbee.models.room import room_of
from rbee.node.probe import Gpu, Probe

NODE = Node(name="gpu1", host="h")
PROBE = Probe(system="Linux", home="/h", ram_total_mb=10_000)
CARD = Gpu("nvidia", "A", memory_total_mb=20_000)


@pytest.mark.parametrize(
    ("node", "gpus", "expected"),
    [
        (NODE, (), 8 * 10**9),
        (NODE, (CARD,), 16 * 10**9),
        (NODE, (CARD, CARD), 32 * 10**9),
        (NODE, (CARD, Gpu("intel", "B", memory_total_mb=5_000)), 16 * 10**9),
        (NODE, (Gpu("apple", "M2"),), 8 * 10**9),
        (replace(NODE, backend="cpu"), (CARD,), 8 * 10**9),
        (replace(NODE, load=replace(NODE.load, gpu_layers=0)), (CARD,), 8 * 10**9),
    ],
)
def test_the_memory_that_holds_the_weights_counts(node: Node, gpus: tuple[Gpu, ...], expected: int) -> None:
    assert room_of(node, replace(PROBE, gpus=gpus)) == expected


def test_nothing_known_is_none() -> None:
    assert room_of(NODE, replace(PROBE, ram_total_mb=0)) is None
