"""What stands in the columns of a row, and which columns there are in a width. Pure.

Rules
- What a node said reaches a cell through `one_line`: nothing that a terminal obeys is left of it.
- A narrow screen has fewer columns, never narrower ones: a number that is cut off is a wrong one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rbee.render.text import clock_time, one_line
from rbee.top.model import NodeRow, NodeState, WorkerRow
from rbee.top.order import Row

#: Cells between two columns.
GAP = 1
#: Of the first column, which takes what the others leave.
LEAST_NAME, MOST_NAME = 12, 44
MOST_HISTORY = 60


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Signs that a terminal may lack. bars: of a sparkline, from the lowest."""

    bars: str = "▁▂▃▄▅▆▇█"
    branch: str = "└ "
    end: str = "…"
    arrows: str = "↑↓"


ASCII = Glyphs(bars=".:-=+*#@", branch="- ", end="~", arrows="up/down")


class Cell(NamedTuple):
    """style: one of `Style`'s words, "" for none."""

    text: str
    style: str = ""


NOTHING = Cell("")


@dataclass(frozen=True, slots=True)
class Column:
    """rank: the higher, the sooner a narrow screen goes without it."""

    title: str
    width: int
    rank: int
    cell: Callable[[Row, Glyphs, int], Cell]
    right: bool = False


def sparkline(values: Sequence[float], cells: int, glyphs: Glyphs, seconds: int) -> str:
    """The last `seconds` values, one a second, in so many cells: each the mean of its part, the highest at full height.
    Where there is nothing, or only nothing, there are spaces."""
    if cells <= 0:
        return ""
    known = list(values[-seconds:])
    padded = [0.0] * (seconds - len(known)) + known
    cells_used = min(cells, seconds)
    bounds = [round(place * seconds / cells_used) for place in range(cells_used + 1)]
    means = [sum(padded[begin:end]) / (end - begin) for begin, end in itertools.pairwise(bounds) if end > begin]
    highest = max(means, default=0.0)
    if highest <= 0:
        return " " * cells
    bars = glyphs.bars
    drawn = "".join(" " if mean <= 0 else bars[min(int(mean / highest * len(bars)), len(bars) - 1)] for mean in means)
    return drawn.rjust(cells)


def gigabytes(used_mb: int, total_mb: int) -> str:
    """ "6.1/16G"; "" where nobody has said."""
    if not total_mb:
        return ""
    return f"{_short(used_mb / 1000)}/{_short(total_mb / 1000)}G"


def _short(number: float) -> str:
    """At most four characters for what a machine has."""
    return f"{number:.1f}" if number < 9.95 else f"{min(number, 99999):.0f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def rate(tokens_per_s: float) -> str:
    """At most six characters."""
    if tokens_per_s <= 0:
        return ""
    return f"{tokens_per_s:.1f}" if tokens_per_s < 9999.95 else f"{min(tokens_per_s / 1000, 99999):.0f}k"


def seconds(span_s: float) -> str:
    """At most six characters; "" for nothing."""
    if span_s <= 0:
        return ""
    if span_s < 0.9995:
        return f"{span_s * 1000:.0f} ms"
    return f"{span_s:.1f} s" if span_s < 999.5 else f"{min(span_s / 60, 9999):.0f} m"


# --- the columns ----------------------------------------------------------------------------------------------------


def _name(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del width
    if isinstance(row, NodeRow):
        return Cell(one_line(row.name), "bold")
    return Cell(f"{glyphs.branch}{one_line(row.model)}")


_NODE_STYLES = {NodeState.CONNECTING: "warn", NodeState.UP: "good", NodeState.NO_HIVE: "dim", NodeState.DOWN: "bad"}
_WORKER_STYLES = {"idle": "dim", "ready": "good", "busy": "good", "failed": "bad"}


def _state(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    if isinstance(row, NodeRow):
        short = "connect" if row.state is NodeState.CONNECTING else row.state.value
        return Cell(short, _NODE_STYLES[row.state])
    text = f"load {row.progress:.0%}" if row.state == "loading" else one_line(row.state)
    return Cell(text, _WORKER_STYLES.get(row.state, "warn"))


def _use(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    if isinstance(row, WorkerRow):
        return NOTHING
    if row.gpu_use is not None:
        return Cell(f"GPU {percent(row.gpu_use)}", _strain(row.gpu_use))
    return Cell(f"CPU {percent(row.cpu)}", _strain(row.cpu)) if row.cpu is not None else NOTHING


def _strain(share: float | None) -> str:
    return "warn" if share is not None and share >= 0.9 else ""


def _memory(row: Row, glyphs: Glyphs, width: int) -> Cell:
    """Of a node with GPUs theirs: it is what models have to fit into."""
    del glyphs, width
    if isinstance(row, WorkerRow):
        return Cell(f"{_short(row.rss_mb / 1000)}G" if row.rss_mb else "")
    total = sum(gpu.total_mb for gpu in row.gpus)
    used = sum(gpu.used_mb for gpu in row.gpus)
    if not total:
        total, used = row.ram_total_mb, row.ram_used_mb
    return Cell(gigabytes(used, total), _strain(used / total) if total else "")


def _slots(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    if not row.slots:
        return NOTHING
    return Cell(f"{row.running}/{row.slots}", "warn" if row.running >= row.slots else "")


def _queue(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    return Cell(str(min(row.queued, 99999)), "warn") if row.queued else NOTHING


def _rate(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    return Cell(rate(row.rate), "bold" if row.rate > 0 else "")


def _history(row: Row, glyphs: Glyphs, width: int) -> Cell:
    return Cell(sparkline(row.history, width, glyphs, MOST_HISTORY), "good")


def _first_token(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    return Cell(seconds(row.first_token_s))


def _id(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    return Cell(row.id[:8], "dim") if isinstance(row, WorkerRow) else NOTHING


def _cores(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    return Cell(str(row.cores)) if isinstance(row, NodeRow) and row.cores else NOTHING


def _device(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    if isinstance(row, WorkerRow):
        return Cell(one_line(row.device))
    names = sorted({gpu.name for gpu in row.gpus})
    count = f"{len(row.gpus)} x " if len(row.gpus) > 1 else ""
    return Cell(count + ", ".join(map(one_line, names))) if names else NOTHING


def _note(row: Row, glyphs: Glyphs, width: int) -> Cell:
    del glyphs, width
    if isinstance(row, NodeRow):
        return Cell(" ".join(f"@{one_line(tag)}" for tag in row.tags), "dim")
    if row.note:
        return Cell(one_line(row.note), "bad")
    return Cell(f"idle for {clock_time(row.idle_s)}", "dim") if row.idle_s is not None else NOTHING


COLUMNS = (
    Column("NODE / MODEL", LEAST_NAME, 0, _name),
    Column("ID", 8, 9, _id),
    Column("STATE", 8, 1, _state),
    Column("CPU/GPU", 8, 5, _use),
    Column("MEMORY", 10, 6, _memory, right=True),
    Column("SLOTS", 5, 2, _slots, right=True),
    Column("WAIT", 4, 4, _queue, right=True),
    Column("TOK/S", 6, 3, _rate, right=True),
    Column("LAST MIN", 8, 7, _history, right=True),
    Column("TTFT", 6, 8, _first_token, right=True),
    Column("CORES", 5, 12, _cores, right=True),
    Column("DEVICE", 22, 11, _device),
    Column("NOTE", 24, 10, _note),
)


def chosen(width: int) -> tuple[Column, ...]:
    """Those that fit into so many cells, in order; the first one gets what is left, and then the history."""
    kept: list[Column] = []
    left = width + GAP
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        if column.width + GAP <= left or not kept:
            kept.append(column)
            left -= column.width + GAP
    name_more = max(0, min(left, MOST_NAME - LEAST_NAME))
    history_more = max(0, min(left - name_more, MOST_HISTORY - 8))
    if width < LEAST_NAME:
        name_more = width - LEAST_NAME
    wider = {"NODE / MODEL": name_more, "LAST MIN": history_more}
    ordered = sorted(kept, key=COLUMNS.index)
    return tuple(replace(each, width=each.width + wider.get(each.title, 0)) for each in ordered)
