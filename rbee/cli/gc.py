"""`rbee gc`: clean up, on all nodes at once; made for cron."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rbee.base.errors import UsageError
from rbee.cli.options import PATIENCE, NodeOption, PatienceOption, duration, patience_s
from rbee.cli.shell import Shell, command

if TYPE_CHECKING:
    from rbee.cleanup.run import GcRequest, NodeReport
    from rbee.context import Context

OlderThanOption = Annotated[
    str | None,
    typer.Option(
        "--older-than",
        metavar="TIME",
        help="Stop workers that were idle for so long, whatever their keep-alive, and remove leftovers that were "
        "unused for so long, two hours at least. [default: their keep-alive, and 7d]",
        show_default=False,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
InstallOption = Annotated[
    bool, typer.Option("--install", help="Show how cron or systemd runs this by itself; install nothing.")
]


def register(app: typer.Typer) -> None:
    command(app, "gc", example="rbee gc --older-than 2h --dry-run")(gc)


def gc(
    shell: Shell,
    node: NodeOption = None,
    older_than: OlderThanOption = None,
    dry_run: DryRunOption = False,
    patience: PatienceOption = PATIENCE,
    install: InstallOption = False,
) -> None:
    """Stop workers past their keep-alive, end processes without a hive, remove leftovers. For cron, too."""
    from rbee.cleanup.run import GcRequest

    request = GcRequest(
        older_than_s=_seconds(older_than, "--older-than"),
        dry_run=dry_run,
        patience_s=patience_s(patience),
        everywhere=node in (None, "all"),
    )
    if install:
        _show_schedule(shell, node, older_than, patience)
    else:
        _clean_up(shell, node, request)


def _seconds(text: str | None, option: str) -> float | None:
    """Raises UsageError for what is no length of time, "never" too."""
    seconds = duration(text, option)
    if seconds is not None and seconds < 0:
        raise UsageError(f"{option} cannot be {text!r}", hint='write "90s", "2h" or "7d"')
    return seconds


def _clean_up(shell: Shell, node: str | None, request: GcRequest) -> None:
    """Exits with the status of what failed."""
    from rbee.base.events import Notice
    from rbee.cleanup.run import clean_up
    from rbee.cli import gc_view

    shell.tells_of_unused_inventory = bool(shell.options.verbose)
    context = _context(shell, dry_run=request.dry_run)
    nodes = context.inventory.select(node)

    def tell(report: NodeReport) -> None:
        if not shell.options.json:
            gc_view.show(report, shell.renderer, shell.options, dry_run=request.dry_run)

    reports = shell.run(clean_up(context, nodes, request, tell=tell))
    if shell.options.json:
        shell.renderer.record(gc_view.document(reports, dry_run=request.dry_run))
    elif reports is None:
        shell.renderer(Notice("another `rbee gc` is running; this one leaves the work to it"))
    if status := gc_view.exit_status(reports or []):
        raise typer.Exit(status)


def _context(shell: Shell, *, dry_run: bool) -> Context:
    """As other commands have it, but with nobody to ask; a dry run does not even make the keeper's id."""
    import secrets

    from rbee.base.settings import keeper_id
    from rbee.context import Context

    settings = shell.settings
    is_known = (settings.home / "keeper-id").exists()
    return Context(
        settings=settings,
        inventory=shell.inventory,
        open_registry=shell.open_registry,
        keeper_id=keeper_id(settings) if is_known or not dry_run else secrets.token_hex(8),
        emit=shell.renderer,
    )


def _show_schedule(shell: Shell, node: str | None, older_than: str | None, patience: str) -> None:
    """This very command, with the settings that it has here and would not have there."""
    from dataclasses import asdict

    from rbee.cleanup.install import schedule
    from rbee.cli.gc_view import schedule_text
    from rbee.cli.installed import command_words, show, variables

    given = {
        "--node": [node] if node else [],
        "--older-than": [older_than] if older_than else [],
        "--patience": [patience] if patience != PATIENCE else [],
    }
    found = schedule(command_words(shell, "gc", given), variables(shell))
    show(shell, asdict(found), schedule_text(found))
