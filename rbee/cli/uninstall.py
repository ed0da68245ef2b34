"""`rbee uninstall`: a node as it was before."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from rbee.cli.options import NodeArgument, NowOption
from rbee.cli.shell import Shell, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rbee.cleanup.uninstall import Uninstalled
    from rbee.inventory import Node

#: How many foreign files are named on a line.
SHOWN = 5

ModelsOption = Annotated[bool, typer.Option("--models", help="Remove the models too.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Remove models without asking.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]


def register(app: typer.Typer) -> None:
    command(app, "uninstall", example="rbee uninstall gpu1 --models")(uninstall)


def uninstall(
    shell: Shell,
    node: NodeArgument,
    models: ModelsOption = False,
    now: NowOption = False,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Stop everything on a node and remove every file that rbee put there; models stay without --models."""
    from dataclasses import asdict

    from rbee import audit
    from rbee.base.events import Notice
    from rbee.cleanup.uninstall import UninstallRequest
    from rbee.cleanup.uninstall import uninstall as use_case

    context = shell.context
    where = context.inventory.node(node)
    request = UninstallRequest(models=models, now=now, assume_yes=yes, dry_run=dry_run)
    recorded = audit.recorded(
        shell.settings, "uninstall", emit=shell.renderer, node=node, models=models, now=now, home=where.home
    )
    with contextlib.nullcontext() if dry_run else recorded:
        outcome = shell.run(use_case(context, where, request))
    data = {"node": node, "dry_run": dry_run, **asdict(outcome)}
    if dry_run:
        shell.renderer.record(data)
        return
    if not shell.options.json:
        for text in remarks(where, outcome):
            shell.renderer(Notice(text))
    shell.renderer.done(summary(node, outcome), data)


def summary(node: str, outcome: Uninstalled) -> str:
    """What was done, in one line."""
    if not outcome.removed and not outcome.processes:
        return f"nothing of rbee is on {node}"
    count = len(outcome.processes)
    ended = f", {count} {'process' if count == 1 else 'processes'} ended" if count else ""
    return f"removed rbee from {node}: {outcome.freed_mb} MB{ended}"


def remarks(node: Node, outcome: Uninstalled) -> Iterator[str]:
    """What stays, and how it could go too."""
    if outcome.kept_models:
        yield f"models stay: {outcome.kept_models_mb} MB in {outcome.home}/models (`--models` removes them)"
    if outcome.foreign:
        more = f" and {len(outcome.foreign) - SHOWN} more" if len(outcome.foreign) > SHOWN else ""
        yield f"not rbee's, so it stays: {', '.join(outcome.foreign[:SHOWN])}{more}"
    if outcome.other_hosts:
        names = ", ".join(outcome.other_hosts[:SHOWN])
        yield f"rbee ran from {outcome.home} on {names} too: if that is a shared folder, it is gone there as well"
    if outcome.elsewhere:
        yield f"rbee was in {outcome.elsewhere} before; set `home` to that and repeat this to clear it too"
    if not node.is_local:
        yield f"{node.name} is still in the inventory (`rbee nodes remove {node.name}`)"
