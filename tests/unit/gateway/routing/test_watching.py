"""What is learned of workers by watching them."""

from __future__ import annotations

from dataclasses import replace

from rbee.gateway.base.views import NodeState, NodeView, WorkerView
from rbee.gateway.routing.situation import Rivals, Seen
from rbee.gateway.routing.watching import LAG_S, Watch
from rbee_remote.protocol import WorkerState
from tests.unit.gateway.views import MODEL, OTHER, node_view, worker_view

WORKER = worker_view("a", slots=4, idle_s=50.0)


def at(worker: WorkerView) -> list[NodeView]:
    return [node_view("a", [worker])]


def test_a_worker_that_was_there_before_has_been_idle_for_as_long_as_it_says() -> None:
    watch = Watch()
    watch.look(at(WORKER), 1000)
    assert watch.seen(1001) == {WORKER.key: Seen(up_s=51, quiet_s=51, others=0)}


def test_what_it_has_to_do_ends_its_quiet() -> None:
    watch = Watch()
    watch.look(at(WORKER), 1000)
    watch.used(WORKER.key, 1010)
    assert watch.seen(1012)[WORKER.key].quiet_s == 2
    watch.look(at(replace(WORKER, slots_free=3)), 1020)
    assert watch.seen(1021)[WORKER.key].quiet_s == 1


def test_others_are_what_it_says_beyond_ours() -> None:
    watch = Watch()
    watch.look(at(replace(WORKER, in_flight=1, slots_free=1, queued=1)), 1000)
    assert watch.seen(1000)[WORKER.key].others == 3
    watch.look(at(replace(WORKER, in_flight=4, slots_free=1, queued=1)), 1000.5)
    assert watch.seen(1000.5)[WORKER.key].others == 3, "it has not heard of ours yet"


def test_what_changed_at_once_here_and_there_is_told_apart_a_moment_later() -> None:
    """One of ours ends as one of somebody else's begins: what the worker says stays the same."""
    watch = Watch()
    watch.look(at(replace(WORKER, in_flight=1, slots_free=3)), 1000)
    watch.used(WORKER.key, 1000.1)
    ended = at(replace(WORKER, in_flight=0, slots_free=3))
    watch.look(ended, 1000.2)
    assert watch.seen(1000.2)[WORKER.key].others == 0
    watch.look(ended, 1000.2 + LAG_S)
    assert watch.seen(1001.2)[WORKER.key].others == 1


def test_what_is_gone_is_forgotten_but_not_what_is_out_of_sight() -> None:
    watch = Watch()
    watch.look(at(WORKER), 1000)
    watch.look([node_view("a", state=NodeState.DOWN)], 1001)
    assert watch.seen(1001)
    watch.look([node_view("a")], 1002)
    assert not watch.seen(1002)
    watch.look(at(WORKER), 1003)
    watch.look([], 1004)
    assert not watch.seen(1004)


def test_rivals_are_so_until_they_are_seen_together() -> None:
    watch = Watch()
    watch.do_not_fit("a", MODEL, [MODEL, OTHER])
    rivals = Rivals("a", frozenset({MODEL, OTHER}))
    assert watch.rivals == {rivals}
    loading = worker_view("a", 2, model=OTHER, state=WorkerState.LOADING)
    watch.look([node_view("a", [WORKER, loading])], 1000)
    assert watch.rivals == {rivals}, "one that loads may not get so far"
    watch.look([node_view("a", [WORKER, worker_view("a", 2, model=OTHER)])], 1001)
    assert watch.rivals == frozenset()
    watch.do_not_fit("a", MODEL, [OTHER])
    watch.look([], 1002)
    assert watch.rivals == frozenset(), "of a node that is gone"
