"""`rbee usage`: what the gateway was used for, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rbee.base.errors import UsageError
from rbee.cli.shell import Shell, command
from rbee.render import Table

if TYPE_CHECKING:
    from rbee.gateway.records.usage import By, Counts


def register(app: typer.Typer) -> None:
    command(app, "usage", example="rbee usage --by model --since 7d")(usage)


def usage(
    shell: Shell,
    by: Annotated[Literal["key", "model", "node", "day"], typer.Option("--by", help="What a row is.")] = "key",
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help="The first day that counts, in UTC: 2026-11-01, or 7d for a week."
        ),
    ] = None,
) -> None:
    """Show requests, tokens and seconds that went through the gateway. Prompts and answers are not kept."""
    from rbee.gateway.records.usage import default_path, read

    found = read(default_path(shell.settings), by, _first_day(since))
    shell.renderer.table(usage_table(by, found))


def usage_table(by: By, found: Mapping[str, Counts]) -> Table:
    rows = [
        (
            name or "-",
            str(counts.requests),
            str(counts.failed),
            str(counts.tokens_in),
            str(counts.tokens_cached),
            str(counts.tokens_out),
            f"{counts.seconds:.1f}",
        )
        for name, counts in found.items()
    ]
    columns = (by.upper(), "REQUESTS", "FAILED", "TOKENS IN", "CACHED", "TOKENS OUT", "SECONDS")
    return Table(columns, rows, [{by: name or None, **asdict(counts)} for name, counts in found.items()])


def _first_day(since: str | None) -> str:
    """ISO 8601, "" for the very first. Raises UsageError."""
    from datetime import UTC, date, datetime, timedelta

    from rbee.base.durations import parse_duration

    if since is None:
        return ""
    try:
        return date.fromisoformat(since).isoformat()
    except ValueError:
        pass
    try:
        seconds = parse_duration(since)
        if seconds < 0:
            return ""
        return (datetime.now(UTC) - timedelta(seconds=seconds)).date().isoformat()
    except (ValueError, OverflowError) as error:
        raise UsageError(f"--since: {since!r} is no day", hint='write "2026-11-01", "24h" or "7d"') from error
