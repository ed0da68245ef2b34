"""The order of those who wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rbee.gateway.base.views import Target, Wanted
from rbee.gateway.routing.queue import MOST_PRIORITY, PRIORITY_S, Queue, Waiter

A, B = Target("smollm2:135m", ("a",)), Target("qwen2.5:0.5b", ("a",))


def waiter(number: int, *targets: Target, at: float = 0.0, priority: int = 0, sha256: str = "") -> Waiter:
    return Waiter(Wanted(targets or (A,), priority=priority, sha256=sha256), at, number)


def test_priority_then_arrival_but_who_waited_long_comes_first() -> None:
    early, late, high = waiter(1), waiter(2, at=1), waiter(3, at=2, priority=1)
    very_late = waiter(4, at=PRIORITY_S + 1, priority=1)
    queue = Queue()
    for each in (late, early, very_late, high):
        queue.add(each)
    assert queue.lines()[0].waiters == [high, early, late, very_late]


def test_no_priority_is_beyond_bounds() -> None:
    assert waiter(1, priority=10**9).place == waiter(1, priority=MOST_PRIORITY).place
    assert waiter(1, priority=-(10**9)).place == waiter(1, priority=-MOST_PRIORITY).place


def test_a_line_is_for_those_who_want_the_same_and_a_place_is_in_the_whole_models() -> None:
    queue = Queue()
    first, other, goes_on, last = waiter(1), waiter(2, B), waiter(3, A, sha256="a"), waiter(4)
    assert [queue.add(each) for each in (first, other, goes_on, last)] == [True, True, True, False]
    assert [line.waiters for line in queue.lines()] == [[first, last], [other], [goes_on]]
    assert [queue.ahead_of(each) for each in (first, other, goes_on, last)] == [0, 0, 1, 2]
    assert (queue.waiting_for(A.model), queue.waiting_for(B.model), len(queue)) == (3, 1, 4)


def test_who_is_removed_is_gone_and_may_be_removed_again() -> None:
    queue = Queue()
    first, second = waiter(1), waiter(2)
    queue.add(first)
    queue.remove(second)
    queue.add(second)
    queue.remove(first)
    queue.remove(first)
    assert list(queue) == [second]
    queue.remove(second)
    assert (len(queue), queue.lines(), queue.line_of(second)) == (0, [], None)


@given(st.lists(st.tuples(st.integers(-2, 2), st.floats(0, 100)), max_size=30))
def test_it_is_always_in_order(asked: list[tuple[int, float]]) -> None:
    queue = Queue()
    waiters = [waiter(number, at=at, priority=priority) for number, (priority, at) in enumerate(asked)]
    for each in waiters:
        queue.add(each)
    assert list(queue) == sorted(waiters, key=lambda each: each.place)
    assert sorted(queue.ahead_of(each) for each in waiters) == list(range(len(waiters)))
