"""Lengths of time as people write them: "90s", "5m", "1h30m", "never"."""

from __future__ import annotations

import re

#: What "never" is in seconds, here and on the wire.
NEVER = -1.0

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")


def parse_duration(value: str | float) -> float:
    """Seconds, or NEVER for "never" and -1. A number without a unit is seconds.

    Raises ValueError, whose text says what would be right.
    """
    if isinstance(value, (int, float)):
        return _checked(float(value), value)
    text = value.strip().lower()
    if text in ("never", "-1"):
        return NEVER
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text):
        return float(text)
    if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
        raise _wrong(value)
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads back: 300.0 is "5m", negative is "never"."""
    if seconds < 0:
        return "never"
    if seconds != int(seconds):
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    rest, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _checked(seconds: float, value: object) -> float:
    if seconds == NEVER:
        return NEVER
    if not 0 <= seconds < float("inf"):
        raise _wrong(value)
    return seconds


def _wrong(value: object) -> ValueError:
    return ValueError(f'{value!r} is not a duration; write "90s", "5m", "1h30m" or "never"')
