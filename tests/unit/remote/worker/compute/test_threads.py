"""Threads give way to others on the same processors, and come back."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

import pytest

from rbee_remote.worker.compute.threads import WINDOW_S, ThreadBudget, Use
from tests.patience import PATIENCE_S


def threads(others: Sequence[float], *, processors: int = 8, most: int = 8) -> list[int]:
    """The number of threads after each window in which others used so many processors."""
    uses = [Use(0.0, 0.0, 0.0)]
    for number, load in enumerate(others, 1):
        uses.append(Use(number * WINDOW_S, uses[-1].busy + (load + 3) * WINDOW_S, number * 3 * WINDOW_S))
    feed = iter(uses)
    thread_budget = ThreadBudget(most, processors, lambda: next(feed))
    return [thread_budget.look(use.at) for use in uses][1:]


def test_where_the_use_of_processors_is_secret_all_threads_compute() -> None:
    def refuse() -> Use:
        raise PermissionError("/proc/stat")

    thread_budget = ThreadBudget(8, 8, refuse)
    assert [thread_budget.look(now) for now in (0.0, 1.0)] == [8, 8]


@pytest.mark.parametrize(("load", "expected"), [(0.0, 8), (0.3, 8), (1.0, 7), (4.1, 4), (7.9, 1), (30.0, 1)], ids=str)
def test_others_get_what_they_use(load: float, expected: int) -> None:
    assert threads([load]) == [expected]


def test_threads_come_back_when_the_others_have_gone() -> None:
    assert threads([6.0, 6.0, 0.0]) == [2, 2, 8]


def test_they_do_not_come_and_go_with_every_small_change() -> None:
    assert threads([1.0, 0.6, 1.4, 0.5, 0.2]) == [7, 7, 7, 7, 8]


def test_no_more_than_the_work_is_worth_where_there_are_more_processors() -> None:
    assert threads([10.0, 60.0, 10.0], processors=64, most=8) == [8, 4, 8]


def test_between_two_windows_nothing_is_read() -> None:
    uses = iter([Use(0.0, 0.0, 0.0)])
    thread_budget = ThreadBudget(2, 2, lambda: next(uses))
    assert [thread_budget.look(0.0), thread_budget.look(0.1), thread_budget.look(0.2)] == [2, 2, 2]


def test_what_went_on_in_a_pause_says_nothing() -> None:
    uses = iter([Use(0.0, 0.0, 0.0), Use(1.0, 2.0, 0.0), Use(9.0, 18.0, 0.0)])
    thread_budget = ThreadBudget(2, 2, lambda: next(uses))
    assert [thread_budget.look(0.0), thread_budget.look(1.0)] == [2, 1]
    thread_budget.pause()
    assert thread_budget.look(9.0) == 2


def test_busy_programs_of_this_machine_are_seen() -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processors)]
    try:
        thread_budget = ThreadBudget.of_this_machine(processors)
        deadline = time.monotonic() + PATIENCE_S
        while thread_budget.look(time.monotonic()) > 1 and time.monotonic() < deadline:
            time.sleep(WINDOW_S)
        assert thread_budget.threads == 1
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
