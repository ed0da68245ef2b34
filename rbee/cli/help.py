"""How help is laid out: each command's first sentence in full, and on a narrow terminal no word broken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

#: Cells: no line is longer, however wide the terminal is; below the second, options have lines of their own.
_WIDEST, _NARROW = 80, 60
#: What is left of a terminal that says it has less.
_LEAST = 24
#: Of the first column: where there is room, of commands on a narrow terminal, and of options there.
_COLUMN, _NARROW_COLUMN, _NO_COLUMN = 30, 12, 4


class Command(TyperCommand):
    def get_help(self, ctx: Any) -> str:
        return super().get_help(_laid_out(ctx))


class Group(TyperGroup):
    def get_help(self, ctx: Any) -> str:
        return super().get_help(_laid_out(ctx))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(10_000)) for name, command in found if command and not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _laid_out(ctx: Any) -> Any:
    """A context whose help fits the terminal that there is now."""
    import shutil

    from typer._click.formatting import HelpFormatter, measure_table

    class Formatter(HelpFormatter):
        def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = _COLUMN, col_spacing: int = 2) -> None:
            rows = list(rows)
            if self.width < _NARROW:
                names = measure_table(rows)[0] if rows else 0
                col_max = _NARROW_COLUMN if names <= _NARROW_COLUMN else _NO_COLUMN
            super().write_dl(rows, col_max, col_spacing)

    ctx.terminal_width = max(_LEAST, min(shutil.get_terminal_size().columns, _WIDEST) - 2)
    ctx.formatter_class = Formatter
    return ctx
