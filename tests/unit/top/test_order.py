"""Which rows are shown, and in which order."""

from __future__ import annotations

import pytest

from rbee.top.model import NodeState
from rbee.top.order import RowKey, Sort, key_of, rows
from tests.unit.top.samples import GPU, node, worker

SLOW = worker("gpu1", "a" * 16, rate=1.0, queued=0, model="b-model", state="busy", rss_mb=10)
FAST = worker("gpu1", "b" * 16, rate=9.0, queued=5, model="a-model", state="idle", rss_mb=900)
OTHER = worker("gpu2", "c" * 16, rate=4.0, queued=9, model="c-model", device="cpu")
NODES = (
    node("gpu1", SLOW, FAST, gpus=(GPU,), tags=("cuda", "big")),
    node("gpu2", OTHER, cpu=0.99, tags=()),
    node("alone", state=NodeState.NO_HIVE, cpu=None, tags=()),
    node("lost", state=NodeState.DOWN, why="no answer", cpu=None, tags=()),
)


def names(sort: Sort = Sort.INVENTORY, words: str = "") -> list[str]:
    return [key.worker[:1] or key.node for key in map(key_of, rows(NODES, sort, words))]


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        (Sort.INVENTORY, ["gpu1", "a", "b", "gpu2", "c", "alone", "lost"]),
        (Sort.RATE, ["gpu1", "b", "a", "gpu2", "c", "alone", "lost"]),
        (Sort.QUEUE, ["gpu2", "c", "gpu1", "b", "a", "alone", "lost"]),
        (Sort.MEMORY, ["gpu1", "b", "a", "gpu2", "c", "alone", "lost"]),
        (Sort.CPU, ["gpu2", "c", "gpu1", "a", "b", "alone", "lost"]),
        (Sort.STATE, ["lost", "gpu1", "a", "b", "gpu2", "c", "alone"]),
        (Sort.NAME, ["alone", "gpu1", "b", "a", "gpu2", "c", "lost"]),
    ],
)
def test_each_order(sort: Sort, expected: list[str]) -> None:
    assert names(sort) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", ["gpu1", "a", "b", "gpu2", "c", "alone", "lost"]),
        ("  ", ["gpu1", "a", "b", "gpu2", "c", "alone", "lost"]),
        ("gpu2", ["gpu2", "c"]),
        ("@cuda", ["gpu1", "a", "b"]),
        ("@CU gpu1", ["gpu1", "a", "b"]),
        ("H100", ["gpu1", "a", "b", "gpu2"][:3]),
        ("a-model", ["gpu1", "b"]),
        ("gpu a-model", ["gpu1", "b"]),
        ("idle", ["gpu1", "b"]),
        ("cccc", ["gpu2", "c"]),
        ("down", ["lost"]),
        ("gpu2 a-model", []),
        ("nothing", []),
    ],
)
def test_a_filter_has_all_words_in_a_node_or_in_its_workers(words: str, expected: list[str]) -> None:
    assert names(words=words) == expected


def test_every_order_comes_round() -> None:
    sort, seen = Sort.INVENTORY, []
    while sort not in seen:
        seen.append(sort)
        sort = sort.next
    assert seen == list(Sort)


def test_a_row_has_a_name_that_stays() -> None:
    assert key_of(NODES[0]) == RowKey("gpu1")
    assert key_of(SLOW) == RowKey("gpu1", "a" * 16)
