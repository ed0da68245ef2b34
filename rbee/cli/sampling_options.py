"""The options of `rbee infer` that say how the next token is chosen, and where the answer ends."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rbee.infer.sampling import check_stop, check_value


def read_sampling(
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="0 always takes the most likely token. [default: 0.8]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Nucleus sampling; 1 is off. [default: 0.95]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="Only the K most likely tokens; 0 is off. [default: 40]")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(
            metavar="P", help="Drop tokens less likely than P times the most likely; 0 is off. [default: 0.05]"
        ),
    ] = None,
    repeat_penalty: Annotated[
        float | None, typer.Option(metavar="R", help="Above 1 makes repetition less likely; 1 is off. [default: 1]")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")] = None,
) -> dict[str, Any]:
    """Fields of `Sampling`, those that were said. Raises UsageError for what no worker takes."""
    given = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
    }
    said = {name: value for name, value in given.items() if value is not None}
    for name, value in said.items():
        check_value(f"--{name.replace('_', '-')}", name, value)
    return said


def read_stop(
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
) -> tuple[str, ...]:
    """Raises UsageError for what no worker takes."""
    texts = tuple(stop or ())
    check_stop("--stop", texts)
    return texts
