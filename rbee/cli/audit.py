"""`rbee audit`: the record of who did what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import ConfigError
from rbee.cli.failed_nodes import partial_failure, why
from rbee.cli.options import NodesArgument, complete_node
from rbee.cli.shell import Shell, command, group
from rbee.render import Table
from rbee.render.text import error_data, one_line, plain_value
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from rbee.audit.check import Verdict
    from rbee.node.session import PerNode


def register(app: typer.Typer) -> None:
    audit = group(app, "audit", "The record of who did what, here and on the nodes.")
    command(audit, "list", example="rbee audit list --node gpu1 --lines 50")(list_)
    command(audit, "verify", example="rbee audit verify gpu1")(verify)


def list_(
    shell: Shell,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="NAME", help="What was done on this node.", autocompletion=complete_node),
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, metavar="N", help="How many entries to show, from the end.")
    ] = 20,
) -> None:
    """Show what was done from here, the last at the end."""
    from rbee.audit.check import last_entries

    shell.renderer.table(entries_table(last_entries(shell.settings, lines, node)))


def verify(shell: Shell, nodes: NodesArgument = None) -> None:
    """Find lines that were changed, removed or moved, and records that were deleted, here and on the nodes."""
    from rbee.audit.check import verify_keeper, verify_nodes

    context = shell.context
    answers = shell.run(verify_nodes(context, context.inventory.select(nodes)))
    keeper = verify_keeper(shell.settings, [note for a in answers if a.value for note in a.value.on_keeper])
    shell.renderer.table(verdicts_table(keeper, answers))
    broken = [breaks for breaks in (keeper.breaks, *(a.value.breaks for a in answers if a.value)) if breaks]
    if broken:
        at = broken[0][0]
        raise ConfigError(
            f"{sum(map(len, broken))} breaks in {len(broken)} audit logs: {at.file}, line {at.line}: {at.reason}",
            hint="whoever can write the file may have changed it, or it was restored or cut by a crash of the machine",
            code=ErrorCode.AUDIT_BROKEN,
        )
    logs = [("this keeper", keeper), *((a.node.name, a.value) for a in answers if a.value)]
    if incomplete := [(name, log.missing) for name, log in logs if log.missing]:
        name, missing = incomplete[0]
        raise ConfigError(
            f"the audit log of {name} lacks entries that the other side's log shows: {missing}",
            hint="it was deleted, or cut and written again; if the node was installed anew, tell rbee: "
            "`rbee nodes remove`, then `rbee nodes add`",
            code=ErrorCode.AUDIT_BROKEN,
        )
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure


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
