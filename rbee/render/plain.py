"""Lines without movement or colour: stderr is a file, a pipe, or a terminal that cannot do more; -q too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rbee.base.errors import RbeeError
from rbee.base.events import (
    BatchProgress,
    Event,
    Finished,
    Notice,
    PhaseDone,
    PhaseStarted,
    Progress,
    Reasoning,
    Retry,
    Timings,
    Token,
    ToolCall,
)
from rbee.render import Output, Renderer, Table
from rbee.render import text as render_text

#: A step is reported when it begins, then every so many seconds, and when it is complete if it took one of these.
EVERY_S = 5.0
WORTH_AN_END_S = 1.0


class PlainRenderer(Renderer):
    """One line of stderr an event. quiet: the answer and errors alone. reasoning: whether it is shown.

    clock: seconds, monotonic.
    """

    def __init__(
        self,
        out: Output,
        err: Output,
        *,
        quiet: bool = False,
        verbose: int = 0,
        stream: bool = True,
        timing: bool = False,
        reasoning: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._err = out, err
        self._quiet, self._verbose, self._stream, self._timing = quiet, verbose, stream, timing
        self._reasoning = reasoning
        self._clock = clock
        self._held: list[str] = []
        self._steps: dict[str, _Step] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Token():
                self._token(event.text)
            case Reasoning():
                self._think(event.text)
            case ToolCall():
                self._call(event)
            case Finished():
                self._finish(event)
            case _ if not self._quiet:
                self._report(event)

    def error(self, error: RbeeError) -> None:
        self._release()
        self._out.end_line()
        for line in render_text.error_lines(error):
            self._line(line)

    def table(self, table: Table) -> None:
        for line in render_text.columns(table.columns, table.rows):
            self._out.write(line + "\n")

    def record(self, data: Mapping[str, Any]) -> None:
        rows = [(key.replace("_", " "), render_text.plain_value(value)) for key, value in data.items()]
        for line in render_text.columns((), rows):
            self._out.write(line + "\n")

    def done(self, text: str, data: Mapping[str, Any]) -> None:
        del data  # for --json
        if not self._quiet:
            self._line(render_text.one_line(text))

    def write(self, text: str) -> None:
        self._out.write(text)

    def close(self) -> None:
        """An answer that was held back and did not become whole is shown as far as it came."""
        self._release()
        self._out.end_line()

    def _token(self, text: str) -> None:
        if not text:
            return
        if self._stream:
            self._end_reasoning()
            self._out.write(text)
        else:
            self._held.append(text)

    def _call(self, call: ToolCall) -> None:
        """A line of its own, whatever came before it."""
        ends_line = self._held[-1].endswith("\n") if self._held else self._out.ends_line
        data = {"name": call.name, "arguments": call.arguments}
        self._token(("" if ends_line else "\n") + render_text.json_line(data, is_terminal=self._out.is_terminal))

    def _think(self, text: str) -> None:
        """To stderr as it comes, also where the answer is held back."""
        if self._reasoning and text:
            if self._err.ends_line:
                self._interrupt()
            self._write_reasoning(text)

    def _write_reasoning(self, text: str) -> None:
        self._err.write(text)

    def _end_reasoning(self) -> None:
        """What follows begins a line."""
        if not self._err.ends_line:
            self._err.write_raw("\n")

    def _finish(self, event: Finished) -> None:
        self._release()
        self._out.end_line()
        if self._timing:
            self._show_timings(event.timings)

    def _show_timings(self, timings: Timings) -> None:
        for line in render_text.columns((), render_text.timing_rows(timings)):
            self._line(line)

    def _report(self, event: Event) -> None:
        match event:
            case PhaseStarted() if self._verbose:
                self._line(f"{self._sign('…', '.')} {render_text.phase_label(event)}{render_text.one_line(event.text)}")
            case PhaseDone():
                self._out.end_line()
                self._line(f"{self._sign('✓', '+')} {render_text.phase_done(event)}")
            case Progress():
                self._step(event)
            case BatchProgress():
                self._step(render_text.batch_step(event))
            case Notice():
                self._interrupt()
                self._line(render_text.one_line(event.text))
            case Retry():
                self._interrupt()
                self._line(render_text.retry(event))

    def _interrupt(self) -> None:
        """What comes in mid-answer begins a line where both streams are shown; elsewhere the answer stays as it is."""
        if self._err.is_terminal:
            self._out.end_line()

    def _step(self, event: Progress) -> None:
        step = self._steps.setdefault(event.key, _Step(render_text.Meter(self._clock)))
        step.meter.add(event)
        if step.is_due(event, self._clock()):
            figures = step.meter.figures(event)
            elapsed = render_text.clock_time(step.meter.elapsed())
            self._line("  ".join(part for part in (render_text.one_line(event.text), figures, elapsed) if part))

    def _line(self, text: str) -> None:
        """A line of stderr. Whoever calls has put values through `one_line`."""
        self._end_reasoning()
        self._err.write_raw(text + "\n")

    def _sign(self, sign: str, plain: str) -> str:
        """`sign`, or `plain` where stderr's encoding lacks it."""
        try:
            sign.encode(getattr(self._err.stream, "encoding", None) or "ascii")
        except UnicodeEncodeError:
            return plain
        return sign

    def _release(self) -> None:
        held, self._held = "".join(self._held), []
        self._end_reasoning()
        self._out.write(held)


class _Step:
    """When a step was last reported, and how far it was."""

    def __init__(self, meter: render_text.Meter) -> None:
        self.meter = meter
        self._reported_at: float | None = None
        self._done = 0.0
        self._complete = False

    def is_due(self, event: Progress, now: float) -> bool:
        """Whether this report is worth a line: the first, the last of a long step, some between. True is remembered."""
        complete = event.total is not None and event.done >= event.total
        if self._reported_at is None or event.done < self._done:
            due = True
        elif complete:
            due = not self._complete and self.meter.elapsed() >= WORTH_AN_END_S
        else:
            due = now - self._reported_at >= EVERY_S
        if due:
            self._reported_at, self._complete = now, complete
        self._done = event.done
        return due
