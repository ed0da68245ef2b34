"""`rbee launch`: agents with a model of this fleet."""

from __future__ import annotations

from typing import Annotated

import typer

from rbee.cli.aliased import alias_of
from rbee.cli.collected import takes
from rbee.cli.load_options import collect_load_options
from rbee.cli.options import ModelOption, NodeOption
from rbee.cli.shell import Shell, command
from rbee_remote.protocol import LoadOptions

#: Agents' prompts are long, and come one at a time: `rbee.launch.model`.
_TOLD = {
    "ctx": "Context in tokens, for each request; auto takes the most that fits. [default: 32768, or what the model was "
    "trained for]",
    "slots": "Requests served at once. [default: 2, or 1 where two do not fit]",
}


def register(app: typer.Typer) -> None:
    command(app, "launch", example="rbee launch claude --node gpu1 --model qwen3:30b -- --continue")(launch)


@takes(load=collect_load_options(told=_TOLD))
def launch(
    shell: Shell,
    *,
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help="claude, codex, opencode or aider.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGS]", help="For the program.", show_default=False)
    ] = None,
    node: NodeOption = None,
    model: ModelOption = None,
    load: LoadOptions,
) -> None:
    """Start a coding agent that uses your nodes; nothing is written into its configuration."""
    from rbee.infer.request import InferRequest
    from rbee.launch.run import Launch, find
    from rbee.launch.run import launch as run_launch

    found, executable = find(program)
    alias = alias_of(model, shell.inventory)
    request = InferRequest(
        node=node,
        among=alias.nodes if alias else (),
        model=alias.model if alias else model,
        load=load.over(alias.load) if alias else load,
        keep_alive_s=alias.keep_alive_s if alias else None,
    )
    asked = Launch(found, executable, tuple(arguments or ()), request, alias, node)
    status = shell.run(run_launch(shell.context, asked))
    raise typer.Exit(status)
