"""Which changes of the inventory a connection outlives, and how long is waited before a node is tried again."""

from __future__ import annotations

import pytest

from rbee.base.errors import ConnectError, NodeError, RbeeError, RefusedError
from rbee.gateway.nodes.pauses import Pauses
from rbee.gateway.nodes.watched_inventory import reached_alike
from rbee.inventory import Node
from rbee.node.socket_http import HungUpError
from rbee_remote.protocol import ErrorCode

NODES = {
    "gpu1": Node("gpu1", host="gpu1.example", jump=("bastion", "outside.example")),
    "bastion": Node("bastion", host="bastion.example"),
}


@pytest.mark.parametrize(
    ("name", "change", "alike"),
    [
        ("gpu1", {"max_workers": 3, "tags": frozenset({"fast"}), "env": {"A": "b"}}, True),
        ("gpu1", {"host": "another.example"}, False),
        ("gpu1", {"home": "~/elsewhere"}, False),
        ("gpu1", {"jump": ()}, False),
        ("bastion", {"port": 2222}, False),
        ("bastion", {"keep_alive_s": 1.0}, True),
    ],
)
def test_what_a_connection_outlives(name: str, change: dict[str, object], alike: bool) -> None:
    settings = {key: getattr(NODES[name], key) for key in ("host", "jump")} | change
    after = {**NODES, name: Node(name, **settings)}
    assert reached_alike("gpu1", NODES, after) is alike


def test_a_jump_host_that_becomes_a_node_is_another_one() -> None:
    after = {**NODES, "outside.example": Node("outside.example", host="o")}
    assert not reached_alike("gpu1", NODES, after)
    assert not reached_alike("gpu1", NODES, {})


LOST = ConnectError(ErrorCode.CONNECTION_LOST, "lost")


def test_pauses_grow_up_to_a_longest_and_begin_anew_when_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.gateway.nodes.pauses.HOLD_SPREAD", (1.0, 1.0))
    pauses = Pauses()
    assert [pauses.after(LOST) for _ in range(7)] == [0.5, 1, 2, 4, 8, 15, 15]
    pauses.well()
    assert pauses.after(LOST) == 0.5


@pytest.mark.parametrize(
    ("error", "is_refusal"),
    [
        (LOST, False),
        (HungUpError("news"), False),
        (NodeError(ErrorCode.WORKER_GONE, "gone"), False),
        (RefusedError(ErrorCode.AUTH_FAILED, "no"), True),
        (NodeError(ErrorCode.DISK_FULL, "full"), True),
    ],
)
def test_what_somebody_has_to_mend_is_not_tried_all_the_time(error: RbeeError, is_refusal: bool) -> None:
    assert (Pauses().after(error) >= 30) is is_refusal
