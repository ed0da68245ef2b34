"""The options of `rbee infer` that say what is shown, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass(frozen=True, slots=True)
class Display:
    """stream: the answer as it comes. timing: how long each step took. reasoning: whether it is shown, None for where
    stderr is a terminal."""

    stream: bool
    timing: bool
    reasoning: bool | None


def read_display(
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Show the answer when it is complete.")] = False,
    show_thinking: Annotated[
        bool | None,
        typer.Option(
            "--show-thinking/--hide-thinking",
            help="Whether the reasoning goes to stderr. [default: where that is a terminal; not with -q]",
        ),
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Show how long each step took.")] = False,
) -> Display:
    return Display(stream=not no_stream, timing=timing, reasoning=show_thinking)
