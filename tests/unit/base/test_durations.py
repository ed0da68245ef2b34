"""Lengths of time: what people write, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.durations import NEVER, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("90", 90),
        (" 5M ", 300),
        ("0", 0),
        ("never", NEVER),
        ("-1", NEVER),
        (-1, NEVER),
        (12.5, 12.5),
    ],
)
def test_it_reads_what_people_write(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5 m", "5x", "-5m", "1h-3m", "nan", "٣s", -2, float("inf"), float("nan")])
def test_it_refuses_everything_else_and_says_what_would_do(text: str | float) -> None:
    with pytest.raises(ValueError, match="5m"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=10**8))
def test_what_is_written_is_read_back(seconds: int) -> None:
    assert parse_duration(format_duration(float(seconds))) == seconds


@given(st.text(max_size=12))
def test_any_text_gives_seconds_or_a_value_error(text: str) -> None:
    try:
        assert parse_duration(text) >= NEVER
    except ValueError as error:
        assert "duration" in str(error)
