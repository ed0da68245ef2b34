"""How long the tests wait for what is going to happen.

A wait ends with what it waits for. Its bound is for a test that fails, so it may be long: a slow machine, or one that
does other things as well, is no failure.
"""

from __future__ import annotations

#: Seconds that are enough for whatever a test waits for; less than what pytest gives a test.
PATIENCE_S = 240.0


def patient(seconds: float) -> float:
    """A bound for what takes less than `seconds` on a machine that has nothing else to do."""
    return min(max(60.0, 6 * seconds), PATIENCE_S)
