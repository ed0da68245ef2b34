"""How much of a prompt shares a step with tokens that others wait for."""

from __future__ import annotations

import pytest

from rbee_remote.worker.compute.pace import FIRST, LEAST, STALL_S, PrefillPace


def test_before_anything_is_known_it_is_careful() -> None:
    assert PrefillPace(512).tokens == FIRST
    assert PrefillPace(8).tokens == 8


@pytest.mark.parametrize(
    ("tokens_per_s", "expected"), [(400, int(400 * STALL_S)), (1, LEAST), (1_000_000, 512)], ids=["CPU", "slow", "GPU"]
)
def test_a_part_takes_about_as_long_as_a_stream_may_wait(tokens_per_s: float, expected: int) -> None:
    pace = PrefillPace(512)
    for _ in range(20):
        pace.observe(100, 100 / tokens_per_s)
    assert pace.tokens == pytest.approx(expected, abs=1)


def test_one_slow_step_does_not_decide() -> None:
    pace = PrefillPace(512)
    for _ in range(5):
        pace.observe(100, 0.1)
    pace.observe(100, 1.0)
    assert pace.tokens > LEAST


def test_small_steps_tell_nothing() -> None:
    pace = PrefillPace(512)
    pace.observe(1, 10.0)
    assert pace.tokens == FIRST
