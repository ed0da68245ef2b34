"""`rbee hive`: the processes that supervise the workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from rbee.cli.failed_nodes import error_value, why
from rbee.cli.options import PATIENCE, NodeArgument, NodesArgument, NowOption, PatienceOption, patience_s
from rbee.cli.shell import Shell, command, group
from rbee.render import Table

if TYPE_CHECKING:
    from rbee.node.session import PerNode
    from rbee_remote.protocol import HiveInfo


def register(app: typer.Typer) -> None:
    hive = group(app, "hive", "The process on a node that supervises its workers.")
    command(hive, "status", example="rbee hive status")(status)
    command(hive, "stop", example="rbee hive stop gpu1")(stop)


def status(shell: Shell, nodes: NodesArgument = None) -> None:
    """Show where a hive runs. Starts none."""
    from rbee.fleet import hives

    context = shell.context
    shell.renderer.table(hives_table(shell.run(hives.hives(context, context.inventory.select(nodes)))))


def stop(shell: Shell, node: NodeArgument, now: NowOption = False, patience: PatienceOption = PATIENCE) -> None:
    """Let running requests finish, then stop the hive and its workers.

    With --now, one that does not answer is ended by signals.
    """
    from rbee.fleet import hives

    seconds = patience_s(patience)
    context = shell.context
    where = context.inventory.node(node)
    stopped = shell.run(hives.stop_hive(context, where, drain=not now, patience_s=seconds))
    text = f"stopped the hive of {node}" if stopped else f"no hive runs on {node}"
    shell.renderer.done(text, {"node": node, "stopped": stopped})


def hives_table(answers: Sequence[PerNode[HiveInfo | None]]) -> Table:
    """None: no hive runs there, which is no fault."""
    from rbee_remote.protocol import encode

    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name, hive = answer.node.name, answer.value
        if hive is None:
            rows.append((name, "unreachable" if answer.error else "none", "-", "-", "-", why(answer.error)))
            data.append({"node": name, "hive": None, **error_value(answer.error)})
        else:
            state = "draining" if hive.draining else "running"
            rows.append((name, state, hive.version, str(hive.pid), str(hive.workers), hive.home))
            data.append({"node": name, "hive": encode(hive)})
    return Table(("NODE", "HIVE", "VERSION", "PID", "WORKERS", "NOTE"), rows, data)
