"""How a table is laid out in the width of a terminal: which columns give way, and when it becomes a list. Pure.

Rules
- A column is never narrower than its longest word, so that none is broken; only a word that is longer than a third of
  the width, such as a path or a digest, may be.
- What does not fit like that is no table: each row becomes a block, a line for each of its cells.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rbee.render.cells import width
from rbee.render.text import one_line

#: Cells between two columns.
GAP = 2


def widths(titles: Sequence[str], rows: Sequence[Sequence[str]], cells: int) -> list[int] | None:
    """Of each column, all of them within so many cells; None where that is no table any more."""
    longest_word = max(cells // 3, 8)
    natural, least = [], []
    for column in zip(titles, *rows, strict=True):
        shown = [one_line(cell) for cell in column]
        natural.append(max(map(width, shown)))
        least.append(max(min(width(word), longest_word) for cell in shown for word in cell.split() or [""]))
    room = cells - GAP * (len(titles) - 1)
    if sum(natural) <= room:
        return natural
    if sum(least) > room:
        return None
    return _shared(natural, least, room)


def _shared(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The least for each; what is left goes to those that lack least first, so that few columns break."""
    found, left = list(least), room - sum(least)
    lacking = sorted(range(len(natural)), key=lambda place: natural[place] - least[place])
    for number, place in enumerate(lacking):
        lacks = natural[place] - least[place]
        found[place] += min(lacks, left // (len(lacking) - number) if lacks > left else lacks)
        left -= found[place] - least[place]
    found[lacking[-1]] += min(left, natural[lacking[-1]] - found[lacking[-1]])
    return found


def blocks(titles: Sequence[str], rows: Sequence[Sequence[str]], cells: int) -> list[list[tuple[str, str]]]:
    """Each row as lines of (label, text): the first cell, and below it those that say something."""
    room = max(map(len, titles[1:]), default=0) + GAP
    found = []
    for first, *others in rows:
        lines = [("", part) for part in textwrap.wrap(one_line(first), cells) or [""]]
        for title, cell in zip(titles[1:], others, strict=True):
            shown = one_line(cell)
            if shown in ("", "-"):
                continue
            label = f"  {title:<{room}}"
            parts = textwrap.wrap(shown, max(cells - len(label), 8))
            lines += [(label if not number else " " * len(label), part) for number, part in enumerate(parts)]
        found.append(lines)
    return found


def wrapped(line: str, cells: int) -> str:
    """A message in lines of so many cells, broken between words; what stands between backticks stays together, so that
    it can be copied, and a word that is too long goes beyond."""
    if width(line) <= cells:
        return line
    parts = line.split("`")
    kept = "`".join(part.replace(" ", "\0") if number % 2 else part for number, part in enumerate(parts))
    indent = " " * (len(line) - len(line.lstrip()))
    broken = textwrap.wrap(kept, cells, subsequent_indent=f"{indent}  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(broken).replace("\0", " ")
