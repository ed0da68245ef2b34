"""A terminal: finished phases stay as lines, what goes on moves below them, the answer streams to stdout.

Rules
- Nothing moves while tokens flow: the live display is gone before the first of them is written.
- The live display comes up only for what lasts longer than SHOW_AFTER_S. A warm `infer` never waits for Rich to be
  imported, nor flickers.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rbee.base.errors import RbeeError
from rbee.base.events import BatchProgress, Event, PhaseDone, PhaseStarted, Progress, Timings, Token, ToolCall
from rbee.render import Output, Table, tables
from rbee.render import text as render_text
from rbee.render.plain import PlainRenderer

if TYPE_CHECKING:
    import rich.console
    import rich.progress
    import rich.table

SHOW_AFTER_S = 0.15
#: Rich measures every cell of a table; longer ones are printed as plain columns.
RICH_ROWS = 200


class TerminalRenderer(PlainRenderer):
    """stderr is a terminal; stdout may be the same one, another, or a file."""

    def __init__(
        self,
        out: Output,
        err: Output,
        *,
        verbose: int = 0,
        color: bool = True,
        stream: bool = True,
        timing: bool = False,
        reasoning: bool = True,
    ) -> None:
        super().__init__(out, err, verbose=verbose, stream=stream, timing=timing, reasoning=reasoning)
        self._color = color
        self._live = _Live(err, color=color)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token):
            if event.text and self._stream:
                self._live.stop()
            self._token(event.text)
            return
        match event:
            case PhaseStarted():
                if self._out.ends_line:  # nothing may be drawn into an answer that is being written
                    self._live.phase(f"{render_text.phase_label(event)}{render_text.one_line(event.text)}")
            case Progress():
                self._live.step(event)
            case BatchProgress():
                self._live.step(render_text.batch_step(event))
            case PhaseDone():
                self._live.stop()
                self._out.end_line()
                self._line(f"{self._style('✓', '32')} {render_text.phase_done(event)}")
            case _:
                super().__call__(event)

    def error(self, error: RbeeError) -> None:
        self.close()
        first, *details = (tables.wrapped(line, self._err.cells) for line in render_text.error_lines(error))
        self._line(f"{self._style('error:', '1;31')}{first.removeprefix('error:')}")
        for line in details:
            hint = line.removeprefix("hint:")
            self._line(line if hint == line else f"{self._style('hint:', '1;36')}{hint}")

    def table(self, table: Table) -> None:
        self._live.stop()
        if not self._out.is_terminal or len(table.rows) > RICH_ROWS:
            super().table(table)
            return
        if not table.rows:
            self._out.write_raw(self._style("none", "2") + "\n")
            return
        cells = self._console(self._out).width
        there = tables.widths(table.columns, table.rows, cells)
        if there is not None:
            self._rich(_rich_table(table.columns, table.rows, framed=False, widths=there), self._out)
        else:
            self._blocks(tables.blocks(table.columns, table.rows, cells))

    def record(self, data: Mapping[str, Any]) -> None:
        self._live.stop()
        super().record(data)

    def write(self, text: str) -> None:
        self._live.stop()
        super().write(text)

    def close(self) -> None:
        self._live.stop()
        super().close()

    def _finish(self, event: Any) -> None:
        self._live.stop()
        super()._finish(event)

    def _show_timings(self, timings: Timings) -> None:
        self._rich(_rich_table(("", "timing"), render_text.timing_rows(timings), framed=True), self._err)

    def _call(self, call: ToolCall) -> None:
        if self._stream:
            self._live.stop()
        super()._call(call)

    def _write_reasoning(self, text: str) -> None:
        """Dim. A line ends after the escape sequence, so that it can be seen to end."""
        self._live.stop()
        line = text.rstrip("\n")
        shown = render_text.neutralise(line)
        ends = text[len(line) :]
        self._err.write_raw((f"\x1b[2m{shown}\x1b[0m" if self._color and shown else shown) + ends)

    def _blocks(self, blocks: Sequence[Sequence[tuple[str, str]]]) -> None:
        """A row's first cell, then the others below it."""
        for number, lines in enumerate(blocks):
            shown = [f"{self._style(label, '2')}{text}" if label else self._style(text, "1") for label, text in lines]
            self._out.write_raw("\n" * (number > 0) + "".join(f"{line}\n" for line in shown))

    def _console(self, output: Output) -> rich.console.Console:
        from rich.console import Console

        return Console(
            file=output.stream,
            width=output.columns,
            _environ=output.environ,
            no_color=not self._color,
            highlight=False,
            markup=False,
        )

    def _rich(self, renderable: rich.table.Table, output: Output) -> None:
        console = self._console(output)
        with console.capture() as capture:
            console.print(renderable)
        output.write_raw(capture.get())

    def _line(self, text: str) -> None:
        """Above what moves. Escape sequences in `text` are ours; a text without any is broken between words."""
        if "\x1b" not in text:
            text = "\n".join(tables.wrapped(line, self._err.cells) for line in text.split("\n"))
        with self._live.hidden():
            super()._line(text)

    def _style(self, text: str, codes: str) -> str:
        text = self._sign(text, "+")
        return f"\x1b[{codes}m{text}\x1b[0m" if self._color else text


class _Live:
    """The moving part: a spinner for the phase, a bar for each step. Its own thread starts it, so a lock guards it."""

    def __init__(self, err: Output, *, color: bool) -> None:
        self._err, self._color = err, color
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._progress: rich.progress.Progress | None = None
        self._phase = ""
        self._steps: dict[str, tuple[Progress, render_text.Meter]] = {}
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def phase(self, text: str) -> None:
        """A phase begins; what was shown of the one before goes."""
        with self._lock:
            self.stop()
            self._phase = text
            self._wait()

    def step(self, event: Progress) -> None:
        """A step of the phase went on; a step that is complete goes."""
        with self._lock:
            _, meter = self._steps.setdefault(event.key, (event, render_text.Meter()))
            meter.add(event)
            self._steps[event.key] = (event, meter)
            if self._progress:
                self._draw(event.key)
            elif not self._timer:
                self._wait()

    def stop(self) -> None:
        """Nothing is on the screen, and nothing will come by itself."""
        with self._lock:
            if self._timer:
                self._timer.cancel()
            if self._progress:
                self._progress.stop()
            self._timer = self._progress = None
            self._phase = ""
            self._steps.clear()
            self._tasks.clear()

    def hidden(self) -> _Hidden:
        """While the context lasts the screen below the last line is ours to write on."""
        return _Hidden(self)

    def pause(self) -> None:
        self._lock.acquire()
        if self._progress:
            self._progress.stop()

    def resume(self) -> None:
        try:
            if self._progress:
                self._progress.start()
        finally:
            self._lock.release()

    def _wait(self) -> None:
        self._timer = threading.Timer(SHOW_AFTER_S, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        """Runs in the timer's thread."""
        progress = _make_progress(self._err, color=self._color)  # imports Rich
        with self._lock:
            if self._timer is not threading.current_thread():
                return  # stopped, or begun anew, in the meantime
            self._progress = progress
            if self._phase:
                self._tasks[""] = self._progress.add_task(self._phase, total=None, figures="")
            for key in self._steps:
                self._draw(key)
            self._progress.start()

    def _draw(self, key: str) -> None:
        assert self._progress is not None
        event, meter = self._steps[key]
        text, figures = render_text.one_line(event.text), meter.figures(event)
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(text, total=event.total, figures=figures)
        complete = event.total is not None and event.done >= event.total
        self._progress.update(
            self._tasks[key],
            description=text,
            total=event.total,
            completed=event.done,
            figures=figures,
            visible=not complete,
        )


class _Hidden:
    """`_Live` taken off the screen for a moment, under its lock."""

    def __init__(self, live: _Live) -> None:
        self._live = live

    def __enter__(self) -> None:
        self._live.pause()

    def __exit__(self, *_: object) -> None:
        self._live.resume()


def _make_progress(err: Output, *, color: bool) -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class KnownBar(BarColumn):
        """A bar where the total is known; the spinner says enough where it is not."""

        def render(self, task: Task) -> Any:
            return Text("") if task.total is None else super().render(task)

    console = Console(
        file=err.stream,
        width=err.columns,
        _environ=err.environ,
        force_terminal=True,
        no_color=not color,
        highlight=False,
    )
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        KnownBar(bar_width=24),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        refresh_per_second=8,
    )


def _rich_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, framed: bool, widths: Sequence[int] | None = None
) -> rich.table.Table:
    """widths: of the columns, None for as it comes."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    padding = (0, 1) if framed else (0, 1, 0, 0)
    style = box.ROUNDED if framed else box.SIMPLE_HEAD
    table = RichTable(box=style, header_style="bold", show_edge=framed, pad_edge=framed, padding=padding)
    for number, column in enumerate(columns):
        table.add_column(Text(column), overflow="fold", width=widths[number] if widths else None)
    for row in rows:
        table.add_row(*(Text(render_text.one_line(cell)) for cell in row))
    return table
