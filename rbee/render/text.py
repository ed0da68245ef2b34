"""Events and values as text; pure, shared by the renderers."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from rbee.base.errors import RbeeError
from rbee.base.events import BatchProgress, PhaseDone, PhaseStarted, Progress, Retry, Timings

#: Rates are taken over this many seconds, so that a stall shows.
RATE_WINDOW_S = 10.0
#: Characters of one value; what a node says may be megabytes, and no one reads them.
LONGEST_LINE = 4000

#: What a terminal obeys: C0 and C1 but newline, tab and the return before a newline; and what reorders the text around
#: it (embeddings, overrides and isolates of Unicode's bidirectional algorithm, UAX 9).
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")
#: What does not show, and makes two names look the same. U+200C and U+200D, the joiners, stay: emoji need them.
_INVISIBLE = re.compile(r"[\xad\u061c\u180e\u200b\u200e\u200f\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb]")

_TIMING_NAMES = {
    "connect_s": "connect",
    "authenticate_s": "authenticate",
    "probe_s": "probe",
    "bootstrap_s": "bootstrap",
    "provision_s": "provision",
    "load_s": "load",
    "first_token_s": "first token",
    "total_s": "total",
}


def neutralise(text: str) -> str:
    """`text` with what a terminal must not obey shown as `\\x1b` or `\\u202e`. A text can be given piece by piece."""
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    """A name, a message: `text` on one line, neutralised, of bounded length, with nothing in it that does not show."""
    line = " ".join(text[:LONGEST_LINE].split())
    return _INVISIBLE.sub(_escaped, neutralise(line)) + ("…" if len(text) > LONGEST_LINE else "")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def phase_label(event: PhaseStarted | PhaseDone) -> str:
    """The phase's number and name in columns of equal width: "3 model    "."""
    return f"{event.phase.value} {event.phase.name.lower():<8} "


def phase_done(event: PhaseDone) -> str:
    return f"{phase_label(event)}{one_line(event.text)}  ({event.seconds:.1f} s)"


def batch_step(event: BatchProgress) -> Progress:
    """How far a batch is, as a step with a total. The fastest nodes stand first."""
    speeds = sorted(event.tokens_per_s.items(), key=lambda each: -each[1])
    named = ", ".join(f"{node} {speed:.0f}" for node, speed in speeds[:3])
    more = f" and {len(speeds) - 3} more" if len(speeds) > 3 else ""
    parts = [
        event.state,
        f"{event.failed} failed" if event.failed else "",
        f"{event.lines_per_s:.3g}/s" if event.lines_per_s else "",
        f"tokens/s: {named}{more}" if any(event.tokens_per_s.values()) else "",
    ]
    return Progress("batch", "  ".join(("lines", *filter(None, parts))), event.done, event.total, "lines")


def retry(event: Retry) -> str:
    text = f"{one_line(event.what)}: try {event.attempt} of {event.attempts} failed: {one_line(event.reason)}"
    return f"{text}; next in {event.delay_s:.2g} s" if event.delay_s else text


def error_lines(error: RbeeError) -> list[str]:
    """The error as the user sees it: what happened, what matters about it, what to do."""
    lines = [f"error: {one_line(error.message)}"]
    lines += [
        f"  {one_line(key)}: {one_line(plain_value(value))}" for key, value in error.details.items() if value != ""
    ]
    if error.hint:
        lines.append(f"hint: {one_line(error.hint)}")
    return lines


def error_data(error: RbeeError) -> dict[str, Any]:
    """The error as JSON values."""
    return {"code": error.code.value, "message": error.message, "details": error.details, "hint": error.hint}


def json_line(data: Any, *, is_terminal: bool) -> str:
    """One line of JSON. A terminal gets its control characters escaped."""
    text = json.dumps(data, ensure_ascii=is_terminal, default=str)
    return (text.replace("\x7f", "\\u007f") if is_terminal else text) + "\n"


def timing_rows(timings: Timings) -> list[tuple[str, str]]:
    """What was measured, in the order in which it happened."""
    measured = ((label, getattr(timings, name)) for name, label in _TIMING_NAMES.items())
    rows = [(label, f"{seconds:.3f} s") for label, seconds in measured if seconds is not None]
    if timings.tokens_per_s is not None:
        rows.append(("tokens/s", f"{timings.tokens_per_s:.1f}"))
    return rows


def amount(count: float) -> str:
    """Bytes in decimal units: 98362432 is "98.4 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def clock_time(seconds: float) -> str:
    """Whole seconds as "12 s", "3:05 min" or "2:10 h"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines: columns as wide as their widest cell, two spaces between, none at the end.

    A cell is one line, or it could pass for a row of its own.
    """
    lines = [tuple(map(one_line, line)) for line in ([header] if header else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


@dataclass(slots=True)
class Meter:
    """How one step goes on: its reports in, rate and time left out. clock: seconds, monotonic."""

    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    _samples: deque[tuple[float, float]] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def add(self, progress: Progress) -> None:
        now = self.clock()
        if self._samples and progress.done < self._samples[-1][1]:
            self._samples.clear()  # begun anew
        self._samples.append((now, progress.done))
        while now - self._samples[0][0] > RATE_WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    def rate(self) -> float | None:
        """Units a second over the window, None while too little is known."""
        if len(self._samples) < 2:
            return None
        (then, before), (now, done) = self._samples[0], self._samples[-1]
        return (done - before) / (now - then) if now - then > 0.2 and done > before else None

    def elapsed(self) -> float:
        return self.clock() - self.began

    def figures(self, progress: Progress) -> str:
        """How far it is: amount, share, rate, time left; what is unknown is left out.

        Steps differ by minutes: what the last seconds took of them tells nothing of the others.
        """
        rate, parts = self.rate(), [_how_far(progress)]
        if progress.total:
            parts.append(f"{min(progress.done / progress.total, 1):.0%}" if progress.unit != "percent" else "")
        if progress.unit == "bytes" and rate:
            parts.append(f"{amount(rate)}/s")
        if progress.total and rate and progress.unit != "steps" and progress.done < progress.total:
            parts.append(f"{clock_time((progress.total - progress.done) / rate)} left")
        return "  ".join(part for part in parts if part)


def _how_far(progress: Progress) -> str:
    if progress.unit == "bytes":
        return (
            amount(progress.done) if progress.total is None else f"{amount(progress.done)} of {amount(progress.total)}"
        )
    if progress.unit == "percent":
        return f"{progress.done / (progress.total or 100) * 100:.0f}%"
    if progress.total is None:
        return f"{progress.done:g}" if progress.done else ""
    return f"{progress.done:g}/{progress.total:g}"


def plain_value(value: Any) -> str:
    """A value of a record as text for people."""
    match value:
        case None | "" | []:
            return "-"
        case bool():
            return "yes" if value else "no"
        case Enum():
            return str(value.value)
        case Mapping():
            return " ".join(f"{key}={item}" for key, item in value.items() if item not in (None, [])) or "-"
        case list() | tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)
