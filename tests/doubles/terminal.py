"""A terminal as far as `rbee.render.live_region` uses one: what is on its screen, and what has scrolled away."""

from __future__ import annotations

import io
import re

_PART = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Terminal(io.StringIO):
    """A stream to write to. text: all lines, with those that scrolled away. Wide characters count as one column."""

    def __init__(self, columns: int = 40, rows: int = 10) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows
        self.lines: list[str] = [""]
        self.row = self.column = 0
        self.written = 0

    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")

    @property
    def screen(self) -> list[str]:
        return self.lines[-self.rows :]

    def size(self) -> tuple[int, int]:
        return self.columns, self.rows

    def resize(self, columns: int, rows: int) -> None:
        """Lines that became too long are wrapped; the cursor stays where its text is, at the end of the last line."""
        assert self.row == len(self.lines) - 1
        wrapped = [[line[at : at + columns] for at in range(0, max(1, len(line)), columns)] for line in self.lines]
        self.lines = [part for line in wrapped for part in line]
        self.columns, self.rows = columns, rows
        self.row, self.column = len(self.lines) - 1, len(self.lines[-1])

    def write(self, text: str) -> int:
        self.written += len(text)
        for part in _PART.finditer(text):
            self._take(part)
        return len(text)

    def _take(self, part: re.Match[str]) -> None:
        count = int(part[1]) if part[1] and part[1].isdigit() else 1
        match part[2] or part[0]:
            case "\r":
                self.column = 0
            case "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            case "A":
                self.row = max(self.row - count, len(self.lines) - self.rows, 0)
            case "C":
                self.column = min(self.column + count, self.columns - 1)
            case "K":
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "J":
                del self.lines[self.row + 1 :]
                self.lines[self.row] = self.lines[self.row][: self.column]
            case "m" | "h" | "l":
                pass
            case text:
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + text + line[self.column + len(text) :]
                self.column += len(text)
                assert self.column <= self.columns, f"{self.lines[self.row]!r} is too wide"
