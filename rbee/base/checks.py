"""Checks of what a user says, whose errors name the option or the setting."""

from __future__ import annotations

from rbee.base.errors import UsageError


def check_range(option: str, value: float, bounds: tuple[float, float]) -> None:
    """Raises UsageError for a number that is not from the one bound to the other; NaN is in no range."""
    low, high = bounds
    if not low <= value <= high:
        raise UsageError(f"{option}: {value} is not between {low:.10g} and {high:.10g}")


def check_text(option: str, text: str) -> None:
    """Raises UsageError for words that are no text: Python keeps their bytes as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{option} is not UTF-8 text (character {error.start})") from error
