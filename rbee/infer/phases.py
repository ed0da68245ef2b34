"""The eight phases as they are timed and reported."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rbee.base.events import Emit, Phase, PhaseDone, PhaseStarted


@dataclass(slots=True)
class Outcome:
    """What came out of a phase; its body sets the text."""

    text: str = ""


@dataclass(slots=True)
class PhaseClock:
    """Reports phases to `emit`, and keeps how long each took.

    current: the phase that runs or failed. seconds: of the phases that ended well.
    """

    emit: Emit
    began: float = field(default_factory=time.monotonic)
    current: Phase = Phase.REGISTRY
    seconds: dict[Phase, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, phase: Phase, text: str) -> Iterator[Outcome]:
        """One phase. It is not reported as done when its body raises."""
        self.current = phase
        began = time.monotonic()
        self.emit(PhaseStarted(phase, text))
        outcome = Outcome(text)
        yield outcome
        self.seconds[phase] = time.monotonic() - began
        self.emit(PhaseDone(phase, outcome.text, self.seconds[phase]))

    def elapsed(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self.began
