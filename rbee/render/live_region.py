"""The last lines of a terminal, which are drawn again and again while what is above them stays.

Rules
- No alternate screen, no scrolling region: what was finished is in the terminal's own history.
- The cursor stands at the end of the last line, or at the beginning of an empty one where nothing is drawn.
- Only lines that changed are written, in one write, so that nothing flickers.
- What does not fit on the screen any more has scrolled away: it stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rbee.render import Output
from rbee.render.markdown import Line

#: DEC's private mode 2026: the terminal shows what stands between at once. Others drop it.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


class LiveRegion:
    """size: columns and rows of the terminal, asked before each drawing."""

    def __init__(self, output: Output, size: Callable[[], tuple[int, int]]) -> None:
        self._output = output
        self._size = size
        self._shown: list[Line] = []
        self._columns = 0
        self._gone = 0

    @property
    def width(self) -> int:
        """Columns that a line can have: the last stays free, where terminals differ in what they do."""
        return max(8, self._size()[0] - 1)

    def draw(self, finished: Sequence[Line], live: Sequence[Line]) -> None:
        """finished: lines that stay, in the place of what was live. live: those that the next drawing replaces; they go
        on from the ones before."""
        columns, rows = self._size()
        if finished:
            kept = list(finished)[min(self._gone, len(finished)) :]
            self._gone = 0
        else:
            kept = []
        lines = list(live)[self._gone :]
        too_many = max(0, len(lines) - max(1, rows - 1))
        self._gone += too_many
        self._write(kept, lines, columns)
        self._shown = lines[too_many:]

    def clear(self) -> None:
        """Nothing is live any more; what is, goes."""
        if self._shown:
            self.draw((), ())
        self._gone = 0

    def close(self) -> None:
        """What is live stays as it is."""
        if self._shown:
            self._output.write_raw("\r\n")
        self._shown, self._gone = [], 0

    def _write(self, kept: list[Line], lines: list[Line], columns: int) -> None:
        """In the place of what is shown."""
        before, after = self._shown, [*kept, *lines]
        first = 0
        if columns != self._columns:  # terminals wrap again what they show: count as they do
            before = [Line("", 0) for line in before for _ in range(max(1, -(-line.width // columns)))]
        else:
            pairs = zip(before, after, strict=False)
            first = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
        self._columns = columns
        if before != after or not lines:
            drawn = _moved(len(before), first) + _drawn(after, first, len(before), ends_line=not lines)
            self._output.write_raw(_BEGIN + drawn + _END)


def _moved(shown: int, to: int) -> str:
    """From the end of the last of so many lines to the beginning of another one, or of the one after them."""
    if not shown:
        return ""
    if to >= shown:
        return "\r\n"
    return "\r" + (f"\x1b[{shown - 1 - to}A" if to < shown - 1 else "")


def _drawn(lines: Sequence[Line], first: int, shown: int, *, ends_line: bool) -> str:
    """The lines from `first` on, of which there is one at least or a shorter text, and nothing below them."""
    if first < len(lines):
        text = "\r\n".join(f"{line.text}\x1b[K" for line in lines[first:])
        return text + ("\x1b[J" if shown > len(lines) else "") + ("\r\n" if ends_line else "")
    if ends_line:
        return "\x1b[J"
    width = lines[-1].width  # all that is left was there before
    return "\x1b[J\x1b[A" + (f"\x1b[{width}C" if width else "")
