"""An answer on a terminal while it comes: reasoning, dim or counted, then Markdown, block by block.

Rules
- A block that is finished is written once; the open one is drawn anew as it grows, some fifteen times a second at most,
  and less often where drawing takes long.
- What comes from the model is neutralised here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rbee.render import Output
from rbee.render.live_region import LiveRegion
from rbee.render.markdown import Line, dim_lines, finished_length, markdown_lines
from rbee.render.text import clock_time, neutralise, one_line

_EVERY_S = 1 / 15
#: Of the time, drawing takes so much at most.
_SHARE = 0.25
_BLANK = Line("", 0)
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class StreamedAnswer:
    """size: columns and rows, as of LiveRegion. folded: whether reasoning is one line that counts. clock: seconds.

    Used on an event loop, whose timers draw what came since. After `end` it shows nothing more.
    """

    def __init__(
        self,
        output: Output,
        size: Callable[[], tuple[int, int]],
        *,
        color: bool,
        folded: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = LiveRegion(output, size)
        self._color, self._folded, self._clock = color, folded, clock
        self._status = ""
        self._is_thinking = False
        self._thought, self._thought_tokens, self._thought_since = "", 0, 0.0
        self._text = ""
        self._gap = False  # whether a blank line comes before the next block
        self._ready: list[Line] = []
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._turns = 0

    def status(self, text: str) -> None:
        """What is waited for, shown until something of the answer comes; "" takes it away at once."""
        self._status = one_line(text)
        if text:
            self._draw_soon()
        else:
            self._draw()

    def reasoning(self, text: str, tokens: int) -> None:
        if not self._is_thinking:
            self._is_thinking, self._thought_since = True, self._clock()
        self._thought += neutralise(text)
        self._thought_tokens = tokens
        self._draw_soon()

    def text(self, text: str) -> None:
        if not text:
            return
        self._end_thought()
        self._text += neutralise(text)
        self._draw_soon()

    def line(self, text: str) -> None:
        """A line above what is drawn, escape sequences of our own in it."""
        self._finish_block(len(self._text))
        self._ready += [Line(part, 0) for part in text.split("\n")]
        self._gap = True
        self._draw()

    def end(self) -> None:
        """All that came is shown, and nothing moves."""
        self._status = ""
        self._end_thought()
        self._finish_block(len(self._text))
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._draw()
        self._region.clear()

    def _draw_soon(self) -> None:
        wait = self._next_at - self._clock()
        if wait <= 0:
            self._draw()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._draw)

    def _draw(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        began = self._clock()
        self._finish_block(finished_length(self._text))
        live = self._live()
        ready, self._ready = self._ready, []
        self._region.draw(ready, live)
        now = self._clock()
        self._next_at = now + max(_EVERY_S, (now - began) / _SHARE)
        if self._moves:
            self._timer = asyncio.get_running_loop().call_later(self._next_at - now, self._draw)

    @property
    def _moves(self) -> bool:
        """Whether something is drawn that moves by itself."""
        return not self._text and (self._folded if self._is_thinking else bool(self._status))

    def _live(self) -> list[Line]:
        if self._text:
            return self._block(self._text)
        if self._is_thinking:
            return [self._folded_line()] if self._folded else self._reasoning_lines()
        return [self._moving(self._status)] if self._status else []

    def _reasoning_lines(self) -> list[Line]:
        """Those that are whole stay: only the last one grows."""
        head, newline, self._thought = self._thought.rpartition("\n")
        if newline:
            self._ready += dim_lines(head, self._region.width)
        return dim_lines(self._thought, self._region.width) if self._thought else []

    def _folded_line(self) -> Line:
        return self._moving(f"thinking, {self._thought_tokens} tokens, {self._thought_time()}")

    def _thought_time(self) -> str:
        return clock_time(self._clock() - self._thought_since)

    def _end_thought(self) -> None:
        if not self._is_thinking:
            return
        said = self._thought.rstrip()
        if self._folded:
            said = f"thought for {self._thought_time()}, {self._thought_tokens} tokens; /think show shows it"
        if said:
            self._ready += dim_lines(said, self._region.width)
        self._is_thinking, self._thought = False, ""
        self._ready.append(_BLANK)

    def _finish_block(self, length: int) -> None:
        """What stands in the first so many characters is written for good."""
        block, self._text = self._text[:length], self._text[length:]
        if block.strip():
            self._ready += self._block(block)
            self._gap = True

    def _block(self, text: str) -> list[Line]:
        lines = markdown_lines(text, self._region.width, color=self._color)
        return [_BLANK, *lines] if self._gap and lines else lines

    def _moving(self, text: str) -> Line:
        self._turns += 1
        shown = f"{_SPINNER[self._turns // 2 % len(_SPINNER)]} {text}"[: self._region.width]
        return Line(f"\x1b[2m{shown}\x1b[0m", len(shown))
