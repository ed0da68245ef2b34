"""What the user looks at, and what a key does to that. Pure: (view, key) -> (view, what is to be done)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee.top.model import NodeRow, NodeState, WorkerRow
from rbee.top.order import Row, RowKey, Sort, key_of


class Screen(enum.Enum):
    LIST = "list"
    DETAILS = "details"
    LOG = "log"
    HELP = "help"


@dataclass(frozen=True, slots=True)
class View:
    """selected: None until something is there. first: of the rows, the topmost that is shown; of a text, of its lines.
    filter: words. typing: what is typed goes into it. asking: whether to stop this worker. message: told until the next
    key. at_end: a log is shown at its end, whatever comes."""

    screen: Screen = Screen.LIST
    selected: RowKey | None = None
    first: int = 0
    sort: Sort = Sort.INVENTORY
    filter: str = ""
    typing: bool = False
    asking: RowKey | None = None
    message: str = ""
    at_end: bool = True


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a worker, its requests first."""

    row: RowKey


@dataclass(frozen=True, slots=True)
class FollowLog:
    """Of a worker, or of a node's hive."""

    row: RowKey


@dataclass(frozen=True, slots=True)
class LeaveLog:
    pass


Action = Quit | Stop | FollowLog | LeaveLog | None


def pressed(view: View, key: str, rows: Sequence[Row], page: int, lines: int = 0) -> tuple[View, Action]:
    """key: a letter, or a name of `keys`. page: rows that fit. lines: of a text in place of the list."""
    view = replace(view, message="")
    if view.asking is not None:
        return replace(view, asking=None), Stop(view.asking) if key in ("y", "Y") else None
    if view.typing:
        return _typed(view, key), None
    if view.screen is Screen.LIST:
        return _in_list(view, key, rows, page)
    return _in_text(view, key, page, lines, rows)


def follow(view: View, rows: Sequence[Row], page: int) -> View:
    """The same with the selected row in sight, when the rows are others than before. One that is gone gives its place
    to the one that stands there now."""
    if view.screen is not Screen.LIST:
        return view
    if not rows:
        return replace(view, first=0)
    place = _place(view, rows)
    selected = key_of(rows[place])
    first = min(max(view.first, place - page + 1), place)
    return replace(view, selected=selected, first=max(0, min(first, len(rows) - page)))


def selected(view: View, rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if key_of(row) == view.selected), None)


def _place(view: View, rows: Sequence[Row]) -> int:
    for place, row in enumerate(rows):
        if key_of(row) == view.selected:
            return place
    if view.selected is not None and view.selected.worker:  # its node is still there
        for place, row in enumerate(rows):
            if key_of(row) == RowKey(view.selected.node):
                return place
    return min(view.first, len(rows) - 1)


def _typed(view: View, key: str) -> View:
    match key:
        case "enter":
            return replace(view, typing=False)
        case "escape":
            return replace(view, typing=False, filter="")
        case "backspace":
            return replace(view, filter=view.filter[:-1])
        case _ if len(key) == 1 and key.isprintable():
            return replace(view, filter=view.filter + key, first=0)
    return view


_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1}


def _in_list(view: View, key: str, rows: Sequence[Row], page: int) -> tuple[View, Action]:
    if key in _STEPS or key in ("pageup", "pagedown", "home", "end"):
        return _moved(view, key, rows, page), None
    row = selected(view, rows)
    match key:
        case "q":
            return view, Quit()
        case "escape":
            return replace(view, filter=""), None
        case "?" | "h":
            return replace(view, screen=Screen.HELP, first=0), None
        case "/":
            return replace(view, typing=True), None
        case "o":
            return replace(view, sort=view.sort.next, message=f"sorted by {view.sort.next.value}"), None
        case "enter" if row is not None:
            return replace(view, screen=Screen.DETAILS, first=0), None
        case "s" | "l" if row is not None:
            return _asked_of(view, key, row)
    return view, None


def _asked_of(view: View, key: str, row: Row) -> tuple[View, Action]:
    """s: stop it; l: its log."""
    if key == "l":
        if isinstance(row, NodeRow) and row.state is NodeState.DOWN:
            return replace(view, message=f"{row.name} cannot be reached: it is tried again"), None
        return replace(view, screen=Screen.LOG, first=0, at_end=True), FollowLog(key_of(row))
    if isinstance(row, WorkerRow):
        return replace(view, asking=key_of(row)), None
    return replace(view, message="choose one of its workers to stop it"), None


def _moved(view: View, key: str, rows: Sequence[Row], page: int) -> View:
    if not rows:
        return view
    place = _place(view, rows)
    jumps = {"pageup": -max(page - 1, 1), "pagedown": max(page - 1, 1), "home": -len(rows), "end": len(rows)}
    place = max(0, min(place + (_STEPS.get(key) or jumps[key]), len(rows) - 1))
    return follow(replace(view, selected=key_of(rows[place])), rows, page)


def _in_text(view: View, key: str, page: int, lines: int, rows: Sequence[Row]) -> tuple[View, Action]:
    """Details, a log, the help: a text that is scrolled."""
    last = max(0, lines - page)
    at = last if view.screen is Screen.LOG and view.at_end else min(view.first, last)
    jumps = {"pageup": -max(page - 1, 1), "pagedown": max(page - 1, 1), "home": -lines, "end": lines, " ": page}
    if step := _STEPS.get(key) or jumps.get(key):
        at = max(0, min(at + step, last))
        return replace(view, first=at, at_end=at == last), None
    row = selected(view, rows)
    match key:
        case "q" | "escape" | "enter" | "left":
            back = replace(view, screen=Screen.LIST, first=0)
            return follow(back, rows, page), LeaveLog() if view.screen is Screen.LOG else None
        case "s" | "l" if view.screen is Screen.DETAILS and row is not None:
            return _asked_of(view, key, row)
    return view, None
