"""Nobody's turn is put off for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.worker.compute.turns import Turns


@given(st.lists(st.integers(0, 4), max_size=8))
def test_each_kind_has_a_step_after_as_many_as_there_are(kinds: list[int]) -> None:
    turns = Turns[int]()
    steps = [turns.take(kinds, lambda kind: kind) for _ in range(3 * len(set(kinds)))]
    for start in range(2 * len(set(kinds)) + 1):
        window = steps[start : start + len(set(kinds))]
        if len(set(kinds)) > 1:
            assert {step[0] for step in window} == set(kinds)
    assert all(len(set(step)) == 1 for step in steps)


@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=30, max_size=30))
def test_nor_where_they_come_and_go(there: list[set[int]]) -> None:
    """Who is always there waits no longer than for each of the others once."""
    turns = Turns[int]()
    waited = 0
    for kinds in there:
        step = turns.take([*sorted(kinds), 9], lambda kind: kind)
        waited = 0 if step == [9] else waited + 1
        assert waited <= 5
