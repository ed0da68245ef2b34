"""What the use cases report while they run: values, handed to an `Emit`. Only `render` turns them into text or JSON."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rbee_remote.protocol import Usage


class Phase(enum.Enum):
    """The eight phases of `rbee infer`; the value is the number that the user sees."""

    REGISTRY = 1
    NODE = 2
    MODEL = 3
    FIT = 4
    START = 5
    REGISTER = 6
    READY = 7
    INFERENCE = 8


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    phase: Phase
    text: str


@dataclass(frozen=True, slots=True)
class PhaseDone:
    """seconds: how long the phase took. text: what came out of it, one short line."""

    phase: Phase
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of known or unknown length. key: the same for all reports of one step.

    unit: "bytes", "steps" (files compiled, layers) or "percent". total: None while unknown.
    """

    key: str
    text: str
    done: float
    total: float | None
    unit: str = "bytes"


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth a line: a fall-back, a wait for another process, a file that was written."""

    text: str


@dataclass(frozen=True, slots=True)
class Retry:
    """A try failed and another follows after `delay_s` seconds; the last one has delay None."""

    what: str
    attempt: int
    attempts: int
    reason: str
    delay_s: float | None


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer. tokens: how many were generated so far."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers. tokens: how many were generated so far."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants a function called; rbee calls none. id: of the call, for whoever sends the result back."""

    name: str
    arguments: dict[str, Any]
    id: str


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one `infer`, on the keeper's clock; None for what was not needed (a warm request has no probe)."""

    connect_s: float | None = None
    authenticate_s: float | None = None
    probe_s: float | None = None
    bootstrap_s: float | None = None
    provision_s: float | None = None
    load_s: float | None = None
    first_token_s: float | None = None
    total_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole. finish_reason: stop, length or tool_calls."""

    finish_reason: str
    usage: Usage
    timings: Timings
    node: str
    model: str
    worker: str


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is. lines_per_s, tokens_per_s (generated, by node): of late. eta_s: seconds for the rest, None
    while unknown. tokens: of prompts and answers. state: what is waited for, "" while answers come."""

    done: int
    total: int
    failed: int
    lines_per_s: float
    eta_s: float | None
    tokens: int
    tokens_per_s: dict[str, float]
    state: str = ""


Event = PhaseStarted | PhaseDone | Progress | Notice | Retry | Token | Reasoning | ToolCall | Finished | BatchProgress
Emit = Callable[[Event], None]


def silent(_: Event) -> None:
    """The `Emit` of work that nobody follows, as over many nodes at once: their rows say what came of it."""
