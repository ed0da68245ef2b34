"""Text in the cells of a terminal: a letter takes one, a Chinese one two, a combining mark none. Pure."""

from __future__ import annotations


def width(text: str) -> int:
    """Cells that a line of text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut(text: str, cells: int, end: str = "…") -> str:
    """`text` in so many cells at most; what does not fit is left out, and `end` says so."""
    if width(text) <= cells:
        return text
    if cells <= width(end):
        return end[: max(cells, 0)]
    from rich.cells import set_cell_size

    return set_cell_size(text, cells - width(end)).rstrip(" ") + end


def fitted(text: str, cells: int, *, right: bool = False, end: str = "…") -> str:
    """`text` in exactly so many cells, at the left or the right of them."""
    text = cut(text, cells, end)
    space = " " * (cells - width(text))
    return space + text if right else text + space
