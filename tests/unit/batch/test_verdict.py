"""When a line has failed, and when a run is of no use any more."""

from __future__ import annotations

import pytest

from rbee.base.retries import BATCH_FATAL_S, BATCH_LONGEST_PAUSE_S
from rbee.batch.verdict import Attempts, Health, is_answer, is_refused


@pytest.mark.parametrize(
    ("status", "answer", "refused"),
    [
        (200, True, False),
        (400, False, True),
        (404, False, True),
        (422, False, True),
        (408, False, False),
        (429, False, False),
        (499, False, False),
        (500, False, False),
        (503, False, False),
    ],
)
def test_statuses(status: int, answer: bool, refused: bool) -> None:
    assert (is_answer(status), is_refused(status)) == (answer, refused)


def test_a_line_fails_when_others_get_answers_and_it_does_not() -> None:
    health = Health(retries=2)
    attempts = Attempts(health.answers)
    for _ in range(10):
        assert not health.missed(attempts, "WORKER_CRASHED", "it died", 0.0)  # so does everybody's
    health.got()
    assert health.missed(attempts, "WORKER_CRASHED", "it died", 0.0)


def test_nodes_that_are_away_count_for_no_line() -> None:
    health = Health(retries=0)
    attempts = Attempts(health.answers)
    health.got()
    for code in ("CONNECTION_LOST", "ALL_SLOTS_BUSY", "NODE_BUSY"):
        assert not health.missed(attempts, code, "away", 0.0)
    assert health.missed(attempts, "WORKER_GONE", "gone", 0.0)


def test_pauses_grow_up_to_a_bound() -> None:
    attempts = Attempts(0)
    health = Health(retries=3)
    pauses = []
    for _ in range(8):
        health.missed(attempts, "CONNECTION_LOST", "away", 0.0)
        pauses.append(attempts.pause_s())
    assert pauses == [1, 2, 4, 8, 16, BATCH_LONGEST_PAUSE_S, BATCH_LONGEST_PAUSE_S, BATCH_LONGEST_PAUSE_S]


def test_a_fleet_that_is_away_is_waited_for_as_long_as_was_said() -> None:
    for give_up_s, over in ((float("inf"), False), (60.0, True)):
        health = Health(retries=3, give_up_s=give_up_s)
        health.missed(Attempts(0), "CONNECTION_LOST", "away", 0.0)
        assert health.is_bad
        assert not health.is_over(59.0)
        assert health.is_over(10**6) is over
        health.got()
        assert not health.is_over(10**6)


def test_what_does_not_pass_by_itself_ends_a_run_that_gets_no_answer() -> None:
    health = Health(retries=3)
    health.missed(Attempts(0), "VRAM_EXHAUSTED", "it needs more", 0.0)
    assert not health.is_over(BATCH_FATAL_S - 1)
    assert health.is_over(BATCH_FATAL_S)
    health.missed(Attempts(0), "CONNECTION_LOST", "away", BATCH_FATAL_S)  # another node may have room
    assert not health.is_over(10 * BATCH_FATAL_S)
