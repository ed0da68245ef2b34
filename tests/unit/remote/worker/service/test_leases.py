"""Leases: whatever keepers do, nobody's is cut short, and the worker does not stay for longer than the last one."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rbee_remote.protocol import Lease
from rbee_remote.worker.service.keep_alive import KeepAlive
from rbee_remote.worker.service.leases import FIRST_REQUEST_S, MOST_TOLD, REMEMBERED, Leases
from tests.doubles import virtual_time
from tests.patience import PATIENCE_S


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def loaded(clock: Clock, keep_alive_s: float = 60.0, keeper: str = "a") -> Leases:
    leases = Leases(keep_alive_s, clock=clock)
    leases.grant(keeper, keep_alive_s)
    leases.loaded()
    return leases


def serve(leases: Leases, keeper: str, keep_alive_s: float | None = None) -> None:
    leases.begin(keeper, keep_alive_s)
    leases.end(keeper)


def test_time_begins_when_the_model_is_loaded(clock: Clock) -> None:
    leases = Leases(60.0, clock=clock)
    leases.grant("a", 60.0)
    clock.now += 500
    assert leases.left_s() == math.inf
    assert leases.told() == (Lease("a", None),)
    leases.loaded()
    clock.now += 20
    assert leases.told() == (Lease("a", 40.0),)


def test_a_keep_alive_of_0_ends_only_the_keepers_own_lease(clock: Clock) -> None:
    leases = loaded(clock, 300.0)
    serve(leases, "b", 0.0)
    assert leases.told() == (Lease("a", 300.0),)
    assert leases.left_s(without="a") == 0


def test_each_keeper_has_the_keep_alive_that_it_gave_last(clock: Clock) -> None:
    leases = loaded(clock, 60.0)
    serve(leases, "b", 100.0)
    serve(leases, "b")
    serve(leases, "c")
    assert leases.told() == (Lease("b", 100.0), Lease("a", 60.0), Lease("c", 60.0))
    clock.now += 80
    assert leases.told() == (Lease("b", 20.0),)
    assert leases.keep_alive_s() == 100.0


def test_a_request_that_is_open_holds_it_and_the_last_one_to_end_counts(clock: Clock) -> None:
    leases = loaded(clock, 5.0)
    leases.begin("a")
    leases.begin("a", 30.0)
    leases.end("a")
    clock.now += 1000
    assert leases.told() == (Lease("a", None),)
    leases.end("a")
    assert leases.left_s() == 30.0


def test_who_was_announced_is_waited_for_even_with_a_keep_alive_of_0(clock: Clock) -> None:
    leases = loaded(clock, 0.0)
    clock.now += FIRST_REQUEST_S - 1
    leases.grant("b", 0.0)
    clock.now += FIRST_REQUEST_S - 1
    assert leases.told() == (Lease("b", 1.0),)
    serve(leases, "b")
    assert leases.left_s() == 0


def test_an_announcement_shortens_nothing(clock: Clock) -> None:
    leases = loaded(clock, 300.0)
    leases.grant("a", 0.0)
    assert leases.left_s() == 300.0


def test_without_end_is_without_end(clock: Clock) -> None:
    leases = loaded(clock, -1.0)
    clock.now += 1e9
    assert leases.told() == (Lease("a", None),)
    assert leases.keep_alive_s() == -1.0


def test_thousands_of_keepers_leave_no_more_than_some_behind(clock: Clock) -> None:
    leases = loaded(clock, -1.0)
    for number in range(5000):
        serve(leases, f"k{number}", 1.0)
        clock.now += 0.1
    assert len(leases._leases) < 2 * REMEMBERED
    for number in range(5000):
        serve(leases, f"k{number}", 100.0)
    told = leases.told()
    assert (len(told), told[0]) == (MOST_TOLD, Lease("a", None))


class AnyOrder(RuleBasedStateMachine):
    """A model beside it: for each keeper, when its lease is over at the earliest."""

    keepers = st.sampled_from(["", "a", "b", "c"])
    seconds = st.sampled_from([-1.0, 0.0, 0.5, 10.0, 300.0, 86400.0])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.leases = loaded(self.clock, 60.0)
        self.open: dict[str, int] = {}
        self.given: dict[str, float] = {"a": 60.0}
        self.until: dict[str, float] = {"a": self.clock.now + 60.0}

    def after(self, seconds: float) -> float:
        return math.inf if seconds < 0 else self.clock.now + seconds

    @rule(seconds=st.sampled_from([0.0, 0.25, 5.0, 60.0, 1000.0, 100_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(keeper=keepers, seconds=st.none() | seconds)
    def a_request_begins(self, keeper: str, seconds: float | None) -> None:
        self.leases.begin(keeper, seconds)
        self.open[keeper] = self.open.get(keeper, 0) + 1
        self.given[keeper] = self.given.get(keeper, 60.0) if seconds is None else seconds

    @precondition(lambda self: any(self.open.values()))
    @rule(data=st.data())
    def a_request_ends(self, data: Any) -> None:
        keeper = data.draw(st.sampled_from(sorted(name for name, count in self.open.items() if count)))
        self.leases.end(keeper)
        self.open[keeper] -= 1
        if not self.open[keeper]:
            self.until[keeper] = self.after(self.given[keeper])

    @rule(keeper=keepers, seconds=seconds)
    def a_keeper_is_announced(self, keeper: str, seconds: float) -> None:
        self.leases.grant(keeper, seconds)
        self.given[keeper] = seconds
        wait = max(seconds, FIRST_REQUEST_S) if seconds >= 0 else seconds
        self.until[keeper] = max(self.until.get(keeper, 0.0), self.after(wait))

    def left(self, keeper: str) -> float:
        return math.inf if self.open.get(keeper) else max(0.0, self.until.get(keeper, 0.0) - self.clock.now)

    @invariant()
    def every_lease_is_as_long_as_it_is(self) -> None:
        told = {lease.keeper: math.inf if lease.left_s is None else lease.left_s for lease in self.leases.told()}
        expected = {keeper: left for keeper in self.given if (left := self.left(keeper)) > 0}
        assert told == pytest.approx(expected)
        assert self.leases.left_s() == pytest.approx(max(expected.values(), default=0.0))
        for keeper in self.given:
            others = [left for other, left in expected.items() if other != keeper]
            assert self.leases.left_s(without=keeper) == pytest.approx(max(others, default=0.0))


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_in_any_order = AnyOrder.TestCase


def keeping(leases: Leases, stay: Callable[[], bool] = lambda: False) -> tuple[KeepAlive, asyncio.Event]:
    over = asyncio.Event()
    return KeepAlive(leases, stay=stay, over=over.set, changed=lambda: None), over


async def test_an_idle_worker_ends_with_the_last_lease() -> None:
    """Short ones, on the real clock: each is over when it should be, and not before."""
    leases = Leases(0.05)
    keep_alive, over = keeping(leases)
    leases.begin("a", 0.05)
    leases.begin("b", 0.3)
    keep_alive.loaded()
    keep_alive.end("b")
    keep_alive.set_idle(True)
    keep_alive.end("a")
    began = asyncio.get_running_loop().time()
    await asyncio.wait_for(over.wait(), PATIENCE_S)
    assert asyncio.get_running_loop().time() - began >= 0.29


async def test_a_lease_that_comes_late_is_kept_too() -> None:
    leases = Leases(0.0)
    keep_alive, over = keeping(leases)
    leases.begin("a", 0.2)
    keep_alive.loaded()
    keep_alive.set_idle(True)
    keep_alive.end("a")
    with keep_alive.leased("b"):
        await asyncio.sleep(0.3)
        assert not over.is_set(), "a's lease is over, b reads an answer"
    await asyncio.wait_for(over.wait(), PATIENCE_S)


def test_a_jump_of_the_date_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(time, "monotonic", loop.time)
        leases = Leases(1.0, clock=loop.time)
        keep_alive, over = keeping(leases)
        leases.begin("a", 1.0)
        keep_alive.loaded()
        keep_alive.set_idle(True)
        keep_alive.end("a")
        for day in (86400.0, -86400.0):
            monkeypatch.setattr(time, "time", lambda day=day: real() + day)
            await asyncio.sleep(0.4)
            assert not over.is_set()
            assert 0 < leases.left_s() < 1
        await asyncio.sleep(0.3)
        assert over.is_set()

    assert signature(Leases).parameters["clock"].default is time.monotonic
    virtual_time.run(main())


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda keep_alive: keep_alive.set_idle(False), "a request is open"),
        (lambda keep_alive: keep_alive.grant("b", 300.0), "another keeper holds it for 300 s"),
        (lambda keep_alive: keep_alive.grant("b", -1.0), "another keeper holds it without end"),
        (lambda keep_alive: keep_alive.grant("a", 300.0), ""),
    ],
)
async def test_why_a_worker_is_not_ended(prepare: Callable[[KeepAlive], None], reason: str) -> None:
    leases = Leases(300.0)
    keep_alive, _ = keeping(leases)
    keep_alive.loaded()
    keep_alive.set_idle(True)
    prepare(keep_alive)
    assert keep_alive.in_use(0.0, "a") == reason


async def test_it_has_to_have_been_idle_for_long_enough_and_unread_answers_count() -> None:
    keep_alive, _ = keeping(Leases(0.0))
    keep_alive.set_idle(True)
    assert keep_alive.in_use(60.0, "a") == "it has been idle for 0 s only"
    with keep_alive.held():
        assert keep_alive.in_use(0.0, "a") == "a client is being served"
    unread, _ = keeping(Leases(0.0), stay=lambda: True)
    unread.set_idle(True)
    assert "come back" in unread.in_use(0.0, "a")
    for one in (keep_alive, unread):
        one.set_idle(False)
