"""Rows in columns that fit a terminal: what is too wide goes on in the last column's place. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rbee.render.text import one_line

#: Less than this is no column: its text stands below the others.
_NARROWEST = 16


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of at most `width` columns, but for words that are longer."""
    cells = [tuple(map(one_line, row)) for row in ([header] if header else []) + list(rows)]
    if not cells:
        return []
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    before = sum(widths) + 2 * len(widths)
    lines: list[str] = []
    for row in cells:
        head = "".join(f"{cell:<{size}}  " for cell, size in zip(row, widths, strict=False))
        if width - before >= _NARROWEST:
            lines += _wrapped(head, row[-1], before, width)
        else:
            lines += [*([head.rstrip()] if head.strip() else []), *_wrapped("  ", row[-1], 2, width)]
    return lines


def _wrapped(head: str, text: str, indent: int, width: int) -> list[str]:
    if not text:
        return [head.rstrip()]
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        drop_whitespace=True,
    )
