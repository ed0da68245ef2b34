"""What a hive tells becomes rows: rates, histories, and what is left of a node that is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rbee.node.probe import Probe
from rbee.top.columns import ASCII
from rbee.top.layout import lines
from rbee.top.model import Fleet, NodeState, summed, waiting_of
from rbee.top.order import Sort, rows
from rbee.top.view import View
from rbee.top.watched import RATE_OVER, WatchedNode
from rbee_remote.protocol import GpuLoad, HiveNews, NodeLoad, Work, WorkerLoad, WorkerState
from tests.doubles.hive import worker_info

ID = "a" * 16


def load(at: float, generated: int, worker_id: str = ID, **more: object) -> NodeLoad:
    worker = WorkerLoad(worker_id, 1, 2, 300, Work(generated, 5, 1, 0.2))
    values: dict[str, object] = {"cores": 4, "cpu": 0.5, "ram_total_mb": 16_000, "ram_used_mb": 4_000}
    return NodeLoad(at, workers=(worker,), **(values | more))  # type: ignore[arg-type]


def watched(*counts: tuple[float, int]) -> WatchedNode:
    node = WatchedNode("gpu1", ("cuda",))
    node.told(HiveNews((worker_info(ID, WorkerState.BUSY),), ()), 100.0)
    for at, generated in counts:
        node.told(load(at, generated), 100.0)
    return node


def test_a_rate_is_of_the_nodes_own_clock() -> None:
    row = watched((10.0, 0), (11.0, 20), (13.0, 80)).row(100.0)
    assert row.workers[0].rate == pytest.approx(80 / 3)
    assert row.workers[0].history == (20.0, 30.0)
    assert (row.rate, row.history) == (row.workers[0].rate, (20.0, 30.0))


def test_a_rate_is_of_the_last_seconds() -> None:
    counts = [(float(second), 0 if second < 20 else (second - 20) * 10) for second in range(40)]
    assert watched(*counts).row(100.0).rate == 10.0
    idle = [*counts, *((float(second), 190) for second in range(40, 41 + RATE_OVER))]
    assert watched(*idle).row(100.0).rate == 0.0


@pytest.mark.parametrize("counts", [[(10.0, 50), (11.0, 3)], [(10.0, 5), (9.0, 50)], [(10.0, 5), (10.0, 50)]])
def test_a_counter_or_a_clock_that_goes_back_begins_anew(counts: list[tuple[float, int]]) -> None:
    row = watched(*counts).row(100.0)
    assert (row.rate, row.workers[0].history) == (0.0, ())


def test_a_node_that_tells_of_no_time_at_all_has_no_rate_without_bounds() -> None:
    """Infinity would be in every sum, no number of JSON, and no height of a bar."""
    row = watched((0.0, 0), (5e-324, 2**63 - 1), (1e-289, 2**63 - 1)).row(100.0)
    assert (row.rate, row.history) == (0.0, ())
    fleet = Fleet((row, row), None, (row.rate,))
    assert lines(fleet, rows(fleet.nodes, Sort.RATE, ""), View(), (200, 24), ASCII)
    assert watched((0.0, 0), (0.01, 5), (1.0, 10)).row(100.0).rate == 10.0


def test_what_a_load_says_is_shown() -> None:
    node = watched()
    node.told(load(1.0, 7, gpus=(GpuLoad("CUDA0", "A100", 80_000, 2_000, 0.5),)), 100.0)
    row = node.row(100.0)
    assert (row.state, row.cores, row.cpu, row.ram_used_mb) == (NodeState.UP, 4, 0.5, 4_000)
    assert (row.running, row.slots, row.queued, row.first_token_s) == (1, 2, 2, 0.2)
    assert row.gpu_use == 0.5
    assert (row.workers[0].rss_mb, row.workers[0].generated) == (300, 7)


def test_a_hive_without_loads_has_slots_all_the_same() -> None:
    node = WatchedNode("gpu1")
    busy = replace(worker_info(ID, WorkerState.BUSY), slots_free=0, rss_mb=200)
    loading = worker_info("b" * 16, WorkerState.LOADING, progress=0.3)
    node.told(HiveNews((busy, loading), ()), 100.0)
    first, second = node.row(100.0).workers
    assert (first.running, first.slots, first.rate, first.rss_mb) == (2, 2, 0.0, 200)
    assert (second.running, second.progress) == (0, 0.3)


def test_idleness_grows_between_two_news() -> None:
    node = WatchedNode("gpu1")
    node.told(HiveNews((worker_info(ID),), ()), 100.0)
    node.told(load(1.0, 0), 130.0)
    assert node.row(130.0).workers[0].idle_s == 30.0


def test_a_worker_that_nobody_knows_is_not_shown_and_one_that_is_gone_is_forgotten() -> None:
    node = watched((1.0, 10), (2.0, 20))
    node.told(load(3.0, 5, "c" * 16), 100.0)
    assert [worker.id for worker in node.row(100.0).workers] == [ID]
    node.told(HiveNews((), None), 100.0)
    assert node.row(100.0).workers == ()
    node.told(HiveNews((worker_info(ID),), None), 100.0)
    assert node.row(100.0).workers[0].history == ()


def test_a_lost_node_says_why_and_has_no_workers() -> None:
    node = watched((1.0, 10))
    node.lost("cannot be reached", 108.0)
    row = node.row(100.0)
    assert (row.state, row.why, row.retry_s, row.workers) == (NodeState.DOWN, "cannot be reached", 8.0, ())
    assert node.row(110.0).retry_s == 0.0
    node.told(HiveNews((worker_info(ID),), None), 111.0)
    assert (node.row(111.0).state, node.row(111.0).why, node.row(111.0).retry_s) == (NodeState.UP, "", None)


def test_a_node_without_a_hive_has_what_was_found_there() -> None:
    node = WatchedNode("gpu1")
    node.probed(Probe(system="Linux", home="/h", cores=8, ram_total_mb=32_000, ram_available_mb=30_000))
    node.no_hive()
    row = node.row(0.0)
    assert (row.state, row.cores, row.cpu, row.ram_total_mb, row.ram_used_mb) == (
        NodeState.NO_HIVE, 8, None, 32_000, 2_000,
    )  # fmt: skip


def test_histories_are_added_second_by_second() -> None:
    assert summed([]) == ()
    assert summed([(1.0, 2.0, 3.0), (10.0,)]) == (1.0, 2.0, 13.0)


@pytest.mark.parametrize(
    "said", [None, {}, {"running": "x", "waiting": []}, {"running": 1, "waiting": [{"model": "m"}]}, 5]
)
def test_what_no_gateway_of_ours_says_is_none(said: object) -> None:
    assert waiting_of(said) is None


def test_a_gateway_says_who_waits() -> None:
    waiting = {"model": "m", "client": "alice", "count": 2, "longest_s": 3.5}
    gateway = waiting_of({"running": 3, "waiting": [waiting]})
    assert gateway is not None
    assert (gateway.running, gateway.waits, gateway.waiting[0].client) == (3, 2, "alice")
