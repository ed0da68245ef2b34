"""How much of a prompt shares a step with tokens that others wait for."""

from __future__ import annotations

import pytest

from rbee_remote.worker.compute.prefill import FIRST, LEAST, STALL_S, PrefillLimit


def test_before_anything_is_known_it_is_careful() -> None:
    assert PrefillLimit(512).tokens == FIRST
    assert PrefillLimit(8).tokens == 8


@pytest.mark.parametrize(
    ("tokens_per_s", "expected"), [(400, int(400 * STALL_S)), (1, LEAST), (1_000_000, 512)], ids=["CPU", "slow", "GPU"]
)
def test_a_part_takes_about_as_long_as_a_stream_may_wait(tokens_per_s: float, expected: int) -> None:
    limit = PrefillLimit(512)
    for _ in range(20):
        limit.observe(100, 100 / tokens_per_s)
    assert limit.tokens == pytest.approx(expected, abs=1)


def test_one_slow_step_does_not_decide() -> None:
    limit = PrefillLimit(512)
    for _ in range(5):
        limit.observe(100, 0.1)
    limit.observe(100, 1.0)
    assert limit.tokens > LEAST


def test_small_steps_tell_nothing() -> None:
    limit = PrefillLimit(512)
    limit.observe(1, 10.0)
    assert limit.tokens == FIRST
