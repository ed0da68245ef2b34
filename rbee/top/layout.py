"""The whole screen as lines: what is known and what is looked at, in a width and a height. Pure.

Rules
- There are as many lines as the height, and none is wider than the width.
- What a node said passes `one_line` before it gets here, or here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from rbee.render.cells import cut, fitted, width
from rbee.render.screen import Line, Span
from rbee.render.text import clock_time, one_line
from rbee.top import columns, details
from rbee.top.columns import GAP, Column, Glyphs
from rbee.top.model import Fleet, NodeRow, NodeState, WorkerRow
from rbee.top.order import Row, key_of
from rbee.top.view import Screen, View, selected

#: Of the header; a narrow screen breaks it into so many lines.
_MOST_HEAD = 3
_BETWEEN = "  "


def lines(
    fleet: Fleet, rows: Sequence[Row], view: View, size: tuple[int, int], glyphs: Glyphs, log: Sequence[str] = ()
) -> list[Line]:
    """size: (cells, lines). log: the lines of the one that is followed, each one line."""
    cells, height = size
    head = header(fleet, cells, glyphs, room=height)
    foot = [footer(view, rows, cells, glyphs)] if height > 1 else []
    room = max(0, height - len(head) - len(foot))
    body = _body(fleet, rows, view, (cells, room), glyphs, log)
    found = [*head, *body[:room], *([()] * (room - len(body))), *foot]
    return [_cut(line, cells, glyphs) for line in found[:height]]


def page(fleet: Fleet, view: View, size: tuple[int, int], glyphs: Glyphs) -> int:
    """Rows, or lines of a text, that fit."""
    head = len(header(fleet, size[0], glyphs, room=size[1]))
    return max(1, size[1] - head - 1 - (view.screen is Screen.LIST))


def text(view: View, rows: Sequence[Row], cells: int, glyphs: Glyphs, log: Sequence[str]) -> list[Line]:
    """What is shown in place of the list."""
    if view.screen is Screen.HELP:
        return details.help_lines(cells, glyphs)
    if view.screen is Screen.LOG:
        return [((part, ""),) for line in log for part in _broken(line, cells)] or [(("waiting for the log", "dim"),)]
    row = selected(view, rows)
    return details.of_row(row, cells, glyphs) if row is not None else [(("it is gone", "dim"),)]


def _body(
    fleet: Fleet, rows: Sequence[Row], view: View, size: tuple[int, int], glyphs: Glyphs, log: Sequence[str]
) -> list[Line]:
    cells, room = size
    if view.screen is not Screen.LIST:
        shown = text(view, rows, cells, glyphs, log)
        last = max(0, len(shown) - room)
        first = last if view.screen is Screen.LOG and view.at_end else min(view.first, last)
        return shown[first : first + room]
    there = columns.chosen(cells)
    titles: Line = (("".join(_joined(fitted(each.title, each.width, right=each.right) for each in there)), "head"),)
    shown_rows = rows[view.first : view.first + max(0, room - 1)]
    body = [row_line(row, there, glyphs, cells, is_selected=key_of(row) == view.selected) for row in shown_rows]
    if not rows:
        what = f"nothing has {view.filter!r} in it" if view.filter else "no nodes"
        body = [((what if fleet.nodes else "no nodes", "dim"),)]
    return [titles, *body]


def row_line(row: Row, there: Sequence[Column], glyphs: Glyphs, cells: int, *, is_selected: bool = False) -> Line:
    """A node that is not there says why, in place of what it would have."""
    spans: list[Span] = []
    used = 0
    told = _told(row)
    for column in there:
        if told and column.title not in ("NODE / MODEL", "ID", "STATE"):
            break
        cell = column.cell(row, glyphs, column.width)
        gap = " " * GAP if spans else ""
        spans.append((gap + fitted(cell.text, column.width, right=column.right, end=glyphs.end), cell.style))
        used += len(gap) + column.width
    if told:
        spans.append((fitted(" " * GAP + told, max(0, cells - used), end=glyphs.end), "dim"))
    if is_selected:
        return (("".join(text for text, _ in spans), "cursor"),)
    return tuple(spans)


def _told(row: Row) -> str:
    if not isinstance(row, NodeRow) or row.state in (NodeState.UP, NodeState.NO_HIVE):
        return ""
    again = f"; again in {clock_time(row.retry_s)}" if row.retry_s is not None and row.retry_s >= 1 else ""
    return one_line(row.why) + again if row.why else ""


def header(fleet: Fleet, cells: int, glyphs: Glyphs, *, room: int = 24) -> list[Line]:
    """What all have together, as many to a line as fit; a running gateway below. A low screen has the first line."""
    parts: list[Span] = [("rbee top", "bold"), *_counts(fleet), *_work(fleet, glyphs)]
    found = _wrapped(parts, cells)[:_MOST_HEAD]
    if fleet.gateway is not None:
        found += _wrapped(_gateway(fleet), cells)[:_MOST_HEAD]
    return found[: max(0, min(len(found), room // 3))] if room < 12 else found


def _counts(fleet: Fleet) -> Iterable[Span]:
    states = [node.state for node in fleet.nodes]
    yield (_some(len(states), "node"), "")
    if down := states.count(NodeState.DOWN):
        yield (f"{down} down", "bad")
    if connecting := states.count(NodeState.CONNECTING):
        yield (f"{connecting} connecting", "warn")
    yield (_some(len(fleet.workers), "worker"), "")


def _work(fleet: Fleet, glyphs: Glyphs) -> Iterable[Span]:
    workers = fleet.workers
    slots = sum(worker.slots for worker in workers)
    if slots:
        yield (f"{sum(worker.running for worker in workers)}/{slots} slots", "")
    if waits := sum(worker.queued for worker in workers):
        yield (f"{waits} wait", "warn")
    if workers:
        yield (f"{fleet.rate:.1f} tok/s", "bold")
    if any(fleet.history):
        yield (columns.sparkline(fleet.history, 10, glyphs, columns.MOST_HISTORY).lstrip(), "good")


def _gateway(fleet: Fleet) -> Iterable[Span]:
    assert fleet.gateway is not None
    yield ("rbee serve", "bold")
    yield (f"{fleet.gateway.running} running", "")
    if not fleet.gateway.waits:
        yield ("none waits", "dim")
        return
    yield (f"{fleet.gateway.waits} wait", "warn")
    for each in fleet.gateway.waiting:
        who = f" of {one_line(each.client)}" if each.client else ""
        yield (f"{each.count}{who} for {one_line(each.model)} since {clock_time(each.longest_s)}", "")


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


KEYS = (
    ("q", "quit"), ("?", "help"), ("/", "filter"), ("o", "sort"), ("s", "stop"), ("l", "log"), ("Enter", "details"),
)  # fmt: skip


def footer(view: View, rows: Sequence[Row], cells: int, glyphs: Glyphs) -> Line:
    """A question, what is typed, a message; else the keys."""
    if view.asking is not None:
        row = selected(view, rows)
        model = f" ({one_line(row.model)})" if isinstance(row, WorkerRow) else ""
        node = one_line(view.asking.node)
        return ((f"stop {view.asking.worker[:8]}{model} on {node} after its requests? y/N", "ask"),)
    if view.typing:
        return (("filter: ", "bold"), (one_line(view.filter), ""), ("_", "bold"))
    if view.message:
        return ((one_line(view.message), "warn"),)
    if view.screen is not Screen.LIST:
        return (("q", "bold"), (" back", ""), (f"  {glyphs.arrows}", "bold"), (" scroll", ""))
    parts = [((key, "bold"), (f" {what}", "")) for key, what in KEYS]
    if view.filter:
        parts.insert(0, (("Esc", "bold"), (f" all, not only {one_line(view.filter)!r}", "")))
    spans: list[Span] = []
    for part in parts:
        more: list[Span] = [(_BETWEEN, "")] if spans else []
        more += part
        if sum(width(each) for each, _ in (*spans, *more)) > cells:
            break
        spans += more
    return tuple(spans)


def _joined(cells: Iterable[str]) -> Iterable[str]:
    for place, cell in enumerate(cells):
        yield (" " * GAP if place else "") + cell


def _wrapped(parts: Iterable[Span], cells: int) -> list[Line]:
    """Parts side by side, none broken."""
    found: list[list[Span]] = []
    used = 0
    for content, style in parts:
        size = width(content)
        if not found or used + len(_BETWEEN) + size > cells:
            found.append([(content, style)])
            used = size
        else:
            found[-1] += [(_BETWEEN, ""), (content, style)]
            used += len(_BETWEEN) + size
    return [tuple(line) for line in found]


def _broken(line: str, cells: int) -> list[str]:
    """All of a line of a log, in as many lines as that takes."""
    if width(line) <= cells:
        return [line]
    return textwrap.wrap(line, max(1, cells if line.isascii() else cells // 2), subsequent_indent="  " * (cells > 20))


def _cut(line: Line, cells: int, glyphs: Glyphs) -> Line:
    if sum(width(content) for content, _ in line) <= cells:
        return line
    kept: list[Span] = []
    left = cells
    for content, style in line:
        if width(content) > left:
            kept.append((cut(content, left, glyphs.end), style))
            break
        kept.append((content, style))
        left -= width(content)
    return tuple(kept)
