"""`rbee audit`: the record of who did what."""

from __future__ import annotations

from typing import Annotated

import typer

from rbee.base.errors import ConfigError
from rbee.cli.options import NodesArgument, complete_node
from rbee.cli.shell import Shell, command, group
from rbee_remote.protocol import ErrorCode


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
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, metavar="N", help="How many of the last entries.")] = 20,
) -> None:
    """Show what was done from here, the last at the end."""
    from rbee.audit.check import last_entries
    from rbee.cli.audit_view import entries_table

    shell.renderer.table(entries_table(last_entries(shell.settings, lines, node)))


def verify(shell: Shell, nodes: NodesArgument = None) -> None:
    """Find lines that were changed, removed or moved, and records that were deleted, here and on the nodes."""
    from rbee.audit.check import verify_keeper, verify_nodes
    from rbee.cli.audit_view import verdicts_table
    from rbee.cli.views import partial_failure

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
            f"the audit log of {name} has lost what the other side's shows: {missing}",
            hint="it was deleted, or cut and written anew; of a node that was set up anew, "
            "`rbee nodes remove` and `rbee nodes add` say so",
            code=ErrorCode.AUDIT_BROKEN,
        )
    failure = partial_failure([answer.error for answer in answers])
    if failure:
        raise failure
