"""`rbee models`: what is on the nodes' disks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rbee.base.errors import NodeError, UsageError
from rbee.base.settings import expand
from rbee.cli.load_options import takes_load_options
from rbee.cli.options import NodeArgument, NodeOption, NodesArgument
from rbee.cli.shell import Shell, command, group
from rbee_remote.protocol import ErrorCode, LoadOptions
from rbee_remote.protocol.load_options import OPTIONS

RefArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="smollm2:135m, hf:OWNER/REPO:QUANT, file:PATH, https://…")
]


def register(app: typer.Typer) -> None:
    models = group(app, "models", "The models on the nodes' disks.")
    command(models, "list", example="rbee models list gpu1")(list_)
    command(models, "show", example="rbee models show smollm2:135m --node gpu1 --kv-type q8_0")(show)
    command(models, "pull", example="rbee models pull gpu1 hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:Q8_0")(pull)
    command(models, "push", example="rbee models push gpu1 ./my-model.gguf")(push)
    command(models, "rm", example="rbee models rm gpu1 smollm2:135m")(rm)


def list_(shell: Shell, nodes: NodesArgument = None) -> None:
    """List the models of all nodes; a node that does not answer is a row."""
    from rbee.cli.views import models_table
    from rbee.fleet import models

    context = shell.context
    shell.renderer.table(models_table(shell.run(models.models(context, context.inventory.select(nodes)))))


@takes_load_options(name for name, option in OPTIONS.items() if option.sizes)
def show(shell: Shell, model: RefArgument, node: NodeOption = None, *, load: LoadOptions) -> None:
    """Show what a model is, what memory it needs, and how much context each node has room for."""
    from rbee.cli.needs_view import needs_data, needs_table, summary
    from rbee.cli.views import partial_failure
    from rbee.fleet import models

    context = shell.context
    nodes = context.inventory.select(node)
    answers = shell.run(models.model_needs(context, nodes, model, load))
    having = [(answer.node, answer.value) for answer in answers if answer.value]
    failure = partial_failure([answer.error for answer in answers])
    if not having:
        raise failure or NodeError(
            ErrorCode.MODEL_NOT_FOUND,
            f"{model} is on none of {len(nodes)} nodes" if len(nodes) > 1 else f"{model} is not on {nodes[0].name}",
            hint="`rbee models list` shows what is there, `rbee models pull` brings it",
        )
    if shell.options.json:
        shell.renderer.record({"models": [needs_data(node, needs) for node, needs in having]})
    else:
        for each_node, needs in having:
            shell.renderer.record(summary(each_node, needs))
            shell.renderer.table(needs_table(needs))
    if failure:
        raise failure


def pull(shell: Shell, node: NodeArgument, model: RefArgument) -> None:
    """Download a model to a node; where the node has no internet, this machine downloads it and sends it."""
    from rbee.cli.views import model_data
    from rbee.fleet import models

    context = shell.context
    info = shell.run(models.pull(context, context.inventory.node(node), model))
    shell.renderer.done(f"{info.model} is on {node}", {"node": node, **model_data(info)})


def push(
    shell: Shell,
    node: NodeArgument,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A file on this machine, or a model's name.")],
) -> None:
    """Send a model from this machine to a node."""
    from rbee.cli.views import model_data
    from rbee.fleet import models

    context = shell.context
    info = shell.run(models.push(context, context.inventory.node(node), file_or_ref(model)))
    shell.renderer.done(f"{info.model} is on {node}", {"node": node, **model_data(info)})


def rm(shell: Shell, node: NodeArgument, model: RefArgument) -> None:
    """Remove a model from a node, unless a worker holds it."""
    from rbee.fleet import models

    context = shell.context
    info = shell.run(models.remove_model(context, context.inventory.node(node), model))
    shell.renderer.done(f"removed {info.model} from {node}", {"removed": info.model, "node": node})


def file_or_ref(text: str) -> Path | str:
    """A path where `text` looks like one or is a file here, else a model's name. Raises UsageError for no such file."""
    if text.startswith(("hf:", "file:", "https:", "http:")):
        return text
    path = expand(text)
    if path.is_file():
        return path.absolute()
    if "/" in text or text.endswith(".gguf"):
        raise UsageError(
            f"there is no file {text}", hint="a model's name is smollm2:135m, hf:OWNER/REPO:QUANT or https://…"
        )
    return text
