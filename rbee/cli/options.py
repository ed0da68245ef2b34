"""Options and arguments that several commands share, and their checks."""

from __future__ import annotations

from typing import Annotated

import typer

from rbee.base.checks import check_range as check_range
from rbee.base.checks import check_text as check_text
from rbee.base.errors import UsageError


def complete_node(incomplete: str) -> list[str]:
    """Names for the shell's completion; none where the inventory is wrong, which is no time to say so."""
    from rbee.base.errors import RbeeError
    from rbee.inventory import load

    try:
        nodes = load().nodes.values()
    except RbeeError:
        return []
    names = [node.name for node in nodes] + sorted({f"@{tag}" for node in nodes for tag in node.tags})
    return [name for name in names if name.startswith(incomplete)]


NodeOption = Annotated[
    str | None,
    typer.Option(
        "--node", metavar="NAME", help="A node, @TAG for one of several, or all.", autocompletion=complete_node
    ),
]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node's name.", autocompletion=complete_node)]
NodesArgument = Annotated[
    str | None,
    typer.Argument(metavar="[NODE]", help="A node, @TAG or all. [default: all]", autocompletion=complete_node),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="REF", help="The model: smollm2:135m, hf:OWNER/REPO:QUANT, file:PATH or https://…"
    ),
]
SystemOption = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system message.")]
ThinkOption = Annotated[
    bool | None,
    typer.Option("--think/--no-think", help="Whether to reason first. [default: as the model's template has it]"),
]
EffortOption = Annotated[
    str | None,
    typer.Option(metavar="WORD", help="How much to reason: low, medium, high, or what the model's template knows."),
]
KeepAliveOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="How long the worker stays when idle: 90s, 5m, never. [default: keep_alive in the inventory, or 5m]",
    ),
]
NowOption = Annotated[bool, typer.Option("--now", help="Do not wait for running requests.")]
PatienceOption = Annotated[
    str,
    typer.Option(
        "--patience", metavar="TIME", help="How long to wait at each step (asking, SIGTERM, SIGKILL) before the next."
    ),
]
#: What is meant without it, and the most that a hive takes.
PATIENCE, MOST_PATIENCE_S = "5s", 600.0
WorkerArgument = Annotated[str, typer.Argument(metavar="ID", help="The worker's id, or the beginning of it.")]


def duration(text: str | None, option: str) -> float | None:
    """Seconds, None for an option that was not given. Raises UsageError that names the option."""
    from rbee.base.durations import parse_duration

    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def patience_s(text: str) -> float:
    """Seconds. Raises UsageError for what is no patience."""
    seconds = duration(text, "--patience")
    if seconds is None or not 0 < seconds <= MOST_PATIENCE_S:
        raise UsageError(
            f"--patience: {text} has to be more than 0 and at most 10m", hint='write "500ms", "30s" or "2m"'
        )
    return seconds
