"""Markdown as lines for a terminal, and where a text that still grows can be cut into what is finished and what is not.

Rules
- What comes from a model is neutralised before it gets here: every escape sequence in the lines is ours.
- A line break is kept, as in a poem; HTML is shown as it is written; a link shows where it leads.
- Colours are the terminal's own sixteen, which fit dark and light ones.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_THEME = "ansi_dark"


class Line(NamedTuple):
    """text: with escape sequences. width: in columns."""

    text: str
    width: int


def markdown_lines(text: str, width: int, *, color: bool) -> list[Line]:
    """One blank line between blocks, none at either end; no line is longer than `width`."""
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, highlight=False, legacy_windows=False, _environ={}
    )
    options = console.options.update(width=width, height=None)
    lines: list[Line] = []
    for block in _blocks(_PARSER.parse(text)):
        rows = [_line(row, color=color) for row in console.render_lines(_Markdown(block), options, pad=False)]
        while rows and not rows[-1].text:
            rows.pop()
        while rows and not rows[0].text:
            rows.pop(0)
        lines += [Line("", 0), *rows] if lines and rows else rows
    return lines


def _blocks(tokens: list[Token]) -> Iterator[list[Token]]:
    """The tokens of each block that stands in no other."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def finished_length(text: str) -> int:
    """How many characters of a growing text stand before its last block: nothing that follows can change them."""
    whole = text[: text.rfind("\n") + 1]  # a line that has just begun may turn out to belong to what is above it
    starts = [token.map[0] for token in _PARSER.parse(whole) if token.map and token.level == 0 and token.nesting >= 0]
    if len(starts) < 2:
        return 0
    return sum(len(line) + 1 for line in whole.split("\n")[: starts[-1]])  # U+2028 ends no line here


def _line(row: list[Segment], *, color: bool) -> Line:
    while row and not row[-1].text.strip():
        if row[-1].style and (row[-1].style.bgcolor or row[-1].style.underline):
            break
        row = row[:-1]
    if row and not (row[-1].style and row[-1].style.bgcolor):
        row = [*row[:-1], Segment(row[-1].text.rstrip(), row[-1].style)]
    texts = [_styled(segment, color=color) for segment in row if not segment.control]
    return Line("".join(texts), sum(segment.cell_length for segment in row))


def _styled(segment: Segment, *, color: bool) -> str:
    if not segment.style:
        return segment.text
    style = segment.style if color else segment.style.without_color
    return style.render(segment.text, color_system=ColorSystem.STANDARD)


class _Heading(Heading):
    """At the left, without a frame."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        self.text.justify = "left"
        self.text.stylize("bold underline" if self.tag == "h1" else "bold")
        yield self.text


class _Code(CodeBlock):
    """Between its fences, at the left edge, so that it can be marked with the mouse as it is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        del console, options
        language = "" if self.lexer_name == "text" else self.lexer_name
        yield Text(f"```{language}", style="dim")
        code = str(self.text).rstrip("\n")
        yield Syntax(code, self.lexer_name, theme=_THEME, word_wrap=True, background_color="default")
        yield Text("```", style="dim")


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
    }

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__("", hyperlinks=False, code_theme=_THEME)
        self.parsed = _with_breaks(tokens)


def _with_breaks(tokens: list[Token]) -> list[Token]:
    for token in tokens:
        for child in token.children or ():
            if child.type == "softbreak":
                child.type = "hardbreak"
    return tokens


def dim_lines(text: str, width: int) -> list[Line]:
    """A text as it is, dim and wrapped."""
    from rich.cells import cell_len

    wrapped = Text(text).wrap(Console(file=io.StringIO(), width=width, _environ={}), width)
    plain: list[Any] = [line.plain.rstrip() for line in wrapped]
    return [Line(f"\x1b[2m{line}\x1b[0m" if line else "", cell_len(line)) for line in plain]
