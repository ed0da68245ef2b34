"""What a node's hive and workers said, as views."""

from __future__ import annotations

from dataclasses import replace

from rbee.gateway.base.views import WorkerKey, WorkerView
from rbee.gateway.nodes.node_news import NodeNews
from rbee_remote.protocol import HiveNews, SlotMemory, WorkerState
from tests.doubles.hive import model_info, worker_info, worker_news

INFO = worker_info()
ONE, TWO = ("1" * 16,), ("2" * 16,)


def news(state: WorkerState = WorkerState.IDLE) -> NodeNews:
    said = NodeNews()
    said.of_hive(HiveNews((replace(INFO, state=state),), (model_info(),)))
    return said


def only(said: NodeNews, in_flight: int = 0) -> WorkerView:
    (view,) = said.views("gpu1", {INFO.id: in_flight})
    return view


def test_a_worker_is_seen_before_it_has_said_anything_itself() -> None:
    view = only(news(), 3)
    assert (view.slots_free, view.in_flight, view.held, view.sha256) == (2, 3, ((), ()), "f" * 64)


def test_the_file_that_a_worker_has_loaded_is_not_always_the_catalogs() -> None:
    said = NodeNews()
    said.of_hive(HiveNews((replace(INFO, sha256=""),), (model_info(sha256="a" * 64),)))
    assert only(said).sha256 == ""


def test_of_its_slots_a_worker_knows_better_than_the_hive() -> None:
    said = news()
    said.of_worker(INFO.id, worker_news(replace(INFO, state=WorkerState.BUSY), slots_free=0))
    assert (only(said).state, only(said).slots_free) == (WorkerState.BUSY, 0)


def test_that_a_worker_ends_or_has_failed_is_the_hives_to_say() -> None:
    for state in (WorkerState.STOPPING, WorkerState.FAILED):
        said = news()
        said.of_worker(INFO.id, worker_news(INFO))
        said.of_hive(HiveNews((replace(INFO, state=state),)))
        assert only(said).state is state


def test_slots_are_told_when_they_change_and_kept_until_then() -> None:
    said = news()
    said.of_worker(INFO.id, worker_news(INFO, held=[SlotMemory(0, ONE), SlotMemory(1, TWO)]))
    said.of_worker(INFO.id, worker_news(INFO, held=[SlotMemory(1, ())]))
    assert only(said).held == (ONE, ())


def test_a_catalog_that_is_not_told_again_is_the_same() -> None:
    said = news()
    said.of_hive(HiveNews((), None))
    assert (list(said.models), said.views("gpu1", {})) == (["smollm2:135m"], ())
    said.of_hive(HiveNews((), ()))
    assert said.models == {}


def test_a_worker_in_doubt_is_not_seen_until_it_is_heard() -> None:
    said = news()
    said.own[INFO.id].doubtful = True
    said.of_hive(HiveNews((INFO,)))
    assert said.views("gpu1", {}) == ()
    said.of_worker(INFO.id, worker_news(INFO))
    assert only(said).key.id == INFO.id


def test_a_number_of_slots_that_no_worker_has_costs_nothing() -> None:
    said = NodeNews()
    said.of_hive(HiveNews((replace(INFO, slots=10**12),)))
    assert len(only(said).held) == 256


def test_news_of_a_worker_that_the_hive_does_not_have_are_nothing() -> None:
    said = NodeNews()
    said.of_worker(INFO.id, worker_news(INFO))
    assert said.views("gpu1", {}) == ()


def test_of_a_worker_that_its_hive_says_has_failed_there_is_no_doubt() -> None:
    said = news()
    said.own[INFO.id].doubtful = True
    assert said.in_doubt("gpu1") == {WorkerKey("gpu1", INFO.id)}
    said.of_hive(HiveNews((replace(INFO, state=WorkerState.FAILED),), None))
    assert said.in_doubt("gpu1") == frozenset()
