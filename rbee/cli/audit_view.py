"""The record of who did what as tables; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rbee.cli.views import why
from rbee.render import Table
from rbee.render.text import error_data, one_line, plain_value

if TYPE_CHECKING:
    from rbee.audit.check import Verdict
    from rbee.node.session import PerNode

#: What stands in columns of its own, or is of no use to people.
_COLUMNS = frozenset({"time", "user", "host", "action", "node", "outcome", "keeper", "previous"})


def entries_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """One row an entry, whatever it holds: it was read from a file that anything may have written to."""
    rows = [
        (
            _text(entry, "time"),
            f"{_text(entry, 'user')}@{_text(entry, 'host')}",
            _text(entry, "action"),
            _text(entry, "node"),
            _text(entry, "outcome"),
            " ".join(f"{name}={one_line(plain_value(value))}" for name, value in entry.items() if name not in _COLUMNS),
        )
        for entry in entries
    ]
    return Table(("TIME", "WHO", "ACTION", "NODE", "OUTCOME", "DETAILS"), rows, entries)


def _text(entry: Mapping[str, Any], name: str) -> str:
    return one_line(plain_value(entry.get(name)))


def verdicts_table(keeper: Verdict, answers: Sequence[PerNode[Verdict]]) -> Table:
    """A row for the keeper, named "-", and one a node; each break has a row of its own."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for name, verdict, error in (("-", keeper, None), *((a.node.name, a.value, a.error) for a in answers)):
        if verdict is None:
            rows.append((name, "-", "unreachable", "-", why(error)))
            data.append({"node": name, "error": error_data(error) if error else None})
            continue
        state = "BROKEN" if verdict.breaks else "MISSING" if verdict.missing else "whole" if verdict.files else "none"
        file = verdict.files[-1] if verdict.files else "-"
        if not verdict.breaks:
            rows.append((name, file, state, str(verdict.lines), verdict.missing))
        rows += ((name, at.file, state, str(at.line), at.reason) for at in verdict.breaks)
        breaks = [{"file": at.file, "line": at.line, "reason": at.reason} for at in verdict.breaks]
        node = {"node": None if name == "-" else name}
        read = {"files": list(verdict.files), "lines": verdict.lines}
        data.append({**node, **read, "breaks": breaks, "missing": verdict.missing})
    return Table(("NODE", "FILE", "CHAIN", "LINE", "WHY"), rows, data)
