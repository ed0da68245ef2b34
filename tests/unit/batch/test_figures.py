"""How many lines go at once, how fast it goes, what a sample says of the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.events import BatchProgress
from rbee.batch.pace import FIRST, at_once, doing
from rbee.batch.results import Outcome
from rbee.batch.sample import Estimate, estimate, spread
from rbee.batch.tally import WINDOW_S, Tally
from rbee.gateway.base.views import NodeState
from rbee.render.text import batch_step
from rbee_remote.protocol import WorkerState
from tests.unit.gateway.views import MODEL, OTHER, node_view, worker_view


def test_as_many_lines_go_at_once_as_slots_hold_and_a_few_more() -> None:
    nodes = [
        node_view("a", [worker_view("a", slots=8), worker_view("a", 2, model=OTHER, slots=100)]),
        node_view("b", [worker_view("b", slots=8, state=WorkerState.LOADING)]),
        node_view("c", [worker_view("c", slots=8)], state=NodeState.DOWN),
    ]
    assert at_once(nodes, frozenset({MODEL})) == 10
    assert at_once(nodes, frozenset()) == 135
    assert at_once(nodes[1:], frozenset({MODEL})) == FIRST
    many = [node_view(f"n{number}", [worker_view(f"n{number}", slots=16)]) for number in range(100)]
    assert at_once(many, frozenset()) == 1664


def test_what_is_waited_for_is_told() -> None:
    loading = worker_view("b", state=WorkerState.LOADING, progress=0.4)
    assert doing([node_view("b", [loading])]) == f"loading {MODEL} on b (40%)"
    assert doing([node_view("b", [loading]), node_view("a", [worker_view("a")])]) == ""
    assert doing([node_view("b")]) == "waiting for a worker"
    down = node_view("b", state=NodeState.DOWN, reason="refused")
    assert doing([down]) == "no node can be reached (b: refused)"
    assert doing([node_view("b", state=NodeState.CONNECTING)]) == "connecting"


def test_speeds_are_of_late() -> None:
    now = 0.0
    tally = Tally(100, 10, lambda: now, done=10)
    for second in range(1, 41):
        now = float(second)
        tally.add("a" if second % 2 else "b", failed=second == 5, tokens=30, completion=20)
    progress = tally.progress("")
    assert (progress.done, progress.total, progress.failed, progress.tokens) == (50, 100, 1, 1200)
    assert progress.lines_per_s == pytest.approx(1, abs=0.05)
    assert progress.eta_s == pytest.approx(50, abs=3)
    assert progress.tokens_per_s["b"] == pytest.approx(10, abs=0.7)
    now += WINDOW_S + 1
    assert tally.progress("x") == BatchProgress(50, 100, 1, 0.0, None, 1200, {}, "x")
    assert (tally.answered, tally.by_node) == (40, {"a": 20, "b": 20})


def test_progress_as_text() -> None:
    speeds = {"a": 10.0, "b": 30.4, "c": 20.0, "d": 1.0}
    step = batch_step(BatchProgress(5, 10, 2, 1.25, 4.0, 100, speeds, "loading x"))
    assert step.text == "lines  loading x  2 failed  1.25/s  tokens/s: b 30, c 20, a 10 and 1 more"
    assert (step.done, step.total) == (5, 10)


@given(count=st.integers(1, 10_000), wanted=st.integers(1, 100))
def test_a_sample_is_spread_over_the_input(count: int, wanted: int) -> None:
    places = spread(count, wanted)
    assert len(set(places)) == len(places) == min(count, wanted)
    assert places[0] == 0
    if wanted > 1:
        assert places[-1] == count - 1


def test_what_a_sample_says_of_the_whole() -> None:
    outcomes = [Outcome(200, seconds=2.0, tokens=100), Outcome(200, seconds=4.0, tokens=300), Outcome(error=("X", "x"))]
    assert estimate(1000, outcomes, 10) == Estimate(200_000, 300.0)
    assert estimate(1000, outcomes[2:], 10) == Estimate(0, 0.0)
