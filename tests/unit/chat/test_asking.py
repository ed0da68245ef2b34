"""Where a turn is asked, in turn."""

from __future__ import annotations

import pytest

from rbee.chat.asking import ways
from rbee.infer.request import InferRequest

OPEN = InferRequest(among=("gpu1", "gpu2", "local"))


@pytest.mark.parametrize(
    ("home", "lost", "tried"),
    [
        (None, set(), [(None, ("gpu1", "gpu2", "local"))]),
        ("gpu1", set(), [("gpu1", ("gpu1", "gpu2", "local")), (None, ("gpu2", "local"))]),
        ("gpu1", {"gpu1"}, [(None, ("gpu2", "local")), (None, ("gpu1",))]),
        ("gone", set(), [(None, ("gpu1", "gpu2", "local"))]),
        (None, {"gpu1", "gpu2", "local"}, [(None, ("gpu1", "gpu2", "local"))]),
    ],
)
def test_home_first_then_elsewhere_then_what_was_lost(
    home: str | None, lost: set[str], tried: list[tuple[str | None, tuple[str, ...]]]
) -> None:
    found = ways(OPEN, ["gpu1", "gpu2", "local"], home, lost)
    assert [(way.node, way.among) for way in found] == tried


def test_a_node_that_was_named_is_the_only_one() -> None:
    request = InferRequest(node="gpu1")
    assert ways(request, ["gpu1"], "gpu1", {"gpu1"}) == [request]
