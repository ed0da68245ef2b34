"""`--sample 10`: which lines are looked at first, and what they say of the whole. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.batch.results import Outcome


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """Places of `wanted` lines of `count`, from 0, the first and the last among them where there are two."""
    if wanted >= count:
        return tuple(range(count))
    if wanted == 1:
        return (0,)
    return tuple(round(place * (count - 1) / (wanted - 1)) for place in range(wanted))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of all lines. seconds: with as many at once as in the sample's best moment."""

    tokens: int
    seconds: float


def estimate(count: int, outcomes: Sequence[Outcome], at_once: int) -> Estimate:
    """count: lines of the input. at_once: how many of them go at once; each took its `seconds` beside others."""
    answered = [each for each in outcomes if each.error is None]
    if not answered:
        return Estimate(0, 0.0)
    tokens = sum(each.tokens for each in answered) / len(answered)
    seconds = sum(each.seconds for each in answered) / len(answered)
    return Estimate(round(tokens * count), seconds * count / max(1, min(at_once, count)))
