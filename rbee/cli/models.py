"""`rbee models`: what is on the nodes' disks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rbee.base.errors import NodeError, UsageError
from rbee.base.settings import expand
from rbee.cli.collected import takes
from rbee.cli.failed_nodes import error_value, partial_failure, why
from rbee.cli.load_options import collect_load_options
from rbee.cli.models_search import available_table, search
from rbee.cli.options import NodeArgument, NodeOption, NodesArgument
from rbee.cli.shell import Shell, command, group
from rbee.render import Table
from rbee.render.text import amount
from rbee_remote.protocol import ErrorCode, LoadOptions
from rbee_remote.protocol.load_options import OPTIONS
from rbee_remote.protocol.quants import quant_of

if TYPE_CHECKING:
    from rbee.fleet.models import Listed
    from rbee.inventory import Node
    from rbee.node.session import PerNode
    from rbee_remote.protocol import ModelInfo, ModelNeeds, NeedPoint

RefArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="smollm2:135m, hf:OWNER/REPO:QUANT, file:PATH, https://…")
]


def register(app: typer.Typer) -> None:
    models = group(app, "models", "The models on the nodes' disks.")
    command(models, "list", example="rbee models list gpu1")(list_)
    command(models, "search", example="rbee models search qwen3 8b --node gpu1")(search)
    command(models, "show", example="rbee models show smollm2:135m --node gpu1 --kv-type q8_0")(show)
    command(models, "pull", example="rbee models pull gpu1 hf:HuggingFaceTB/SmolLM2-360M-Instruct-GGUF:Q8_0")(pull)
    command(models, "push", example="rbee models push gpu1 ./my-model.gguf")(push)
    command(models, "rm", example="rbee models rm gpu1 smollm2:135m")(rm)


def list_(
    shell: Shell,
    nodes: NodesArgument = None,
    available: Annotated[bool, typer.Option("--available", help="The short names that rbee knows, instead.")] = False,
) -> None:
    """List the models of all nodes; a node that does not answer is a row."""
    from rbee.fleet import models

    if available:
        shell.renderer.table(available_table())
        return
    context = shell.context
    shell.renderer.table(models_table(shell.run(models.models(context, context.inventory.select(nodes)))))


@takes(load=collect_load_options(name for name, option in OPTIONS.items() if option.sizes))
def show(shell: Shell, model: RefArgument, node: NodeOption = None, *, load: LoadOptions) -> None:
    """Show what a model is, what memory it needs, and how much context each node has room for."""
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


def pull(
    shell: Shell,
    node: NodeArgument,
    model: RefArgument,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Take the newest version, where the node's copy is older.")
    ] = False,
) -> None:
    """Download a model to a node; where the node has no internet, this machine downloads it and sends it."""
    from rbee.fleet import models

    context = shell.context
    info = shell.run(models.pull(context, context.inventory.node(node), model, refresh=refresh))
    shell.renderer.done(f"{info.model} is on {node}", {"node": node, **model_data(info)})


def push(
    shell: Shell,
    node: NodeArgument,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A file on this machine, or a model's name.")],
) -> None:
    """Send a model from this machine to a node."""
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
    from rbee.models.hub_address import is_page

    if text.startswith(("hf:", "file:", "https:", "http:")) or is_page(text):
        return text
    path = expand(text)
    if path.is_file():
        return path.absolute()
    if "/" in text or text.endswith(".gguf"):
        raise UsageError(
            f"there is no file {text}", hint="a model's name is smollm2:135m, hf:OWNER/REPO:QUANT or https://…"
        )
    return text


def models_table(answers: Sequence[PerNode[Listed]]) -> Table:
    """A node that does not answer is a row."""
    rows: list[Sequence[str]] = []
    data: list[Mapping[str, Any]] = []
    for answer in answers:
        name = answer.node.name
        if answer.error:
            rows.append((name, "-", "-", "-", "-", why(answer.error)))
            data.append({"node": name, **error_value(answer.error)})
        for model in answer.value.catalog if answer.value else ():
            meta = model.meta
            rows.append((name, model.model, amount(model.size), meta.quantization or "-", meta.able[0], model.source))
            data.append({"node": name, **model_data(model)})
        for found in answer.value.elsewhere if answer.value else ():
            quant, source = quant_of(found.file) or "-", f"found: {found.program}"
            rows.append((name, found.name, amount(found.size), quant, "-", source))
            data.append(
                {"node": name, "model": found.name, "path": found.path, "size": found.size, "found": found.program}
            )
    return Table(("NODE", "MODEL", "SIZE", "QUANTIZATION", "FOR", "SOURCE"), rows, data)


def model_data(model: ModelInfo) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    return {**encode(model), "capabilities": list(model.meta.able)}


def summary(node: Node, needs: ModelNeeds) -> dict[str, Any]:
    """The model and the node's memory, a line each."""
    info, meta = needs.info, needs.info.meta
    parts = f" and {info.parts - 1} more parts" if info.parts > 1 else ""
    room = "; ".join(
        f"{point.ctx:,} tokens with {_slots(point.slots)}" if point.ctx else f"none with {_slots(point.slots)}"
        for point in needs.largest
    )
    return {
        "node": node.name,
        "model": info.model,
        "file": f"{info.path}{parts}",
        "size": amount(info.size),
        "quantization": meta.quantization or "-",
        "architecture": meta.architecture,
        "serves": ", ".join(meta.able),
        "parameters": f"{meta.parameters / 1e6:,.0f} M" if meta.parameters else "-",
        "layers": meta.n_layers,
        "trained_context": f"{meta.n_ctx_train:,} tokens",
        "memory": f"{needs.available_mb:,} MB of {needs.memory.upper()} available ({needs.device})",
        "largest_context": room,
        "told_by": "llama.cpp" if needs.measured else "an upper bound from the file's metadata",
    }


def needs_table(needs: ModelNeeds) -> Table:
    """Context sizes down, slot counts across; what the node has no room for is marked."""
    counts = sorted({point.slots for point in needs.points})
    at = {(point.ctx, point.slots): point for point in needs.points}
    rows: list[Sequence[str]] = [
        (f"{ctx:,}", *(_cell(at[ctx, slots], needs.available_mb) for slots in counts))
        for ctx in sorted({point.ctx for point in needs.points})
    ]
    return Table(("CONTEXT", *(_slots(count).upper() for count in counts)), rows, [])


def needs_data(node: Node, needs: ModelNeeds) -> dict[str, Any]:
    from rbee_remote.protocol import encode

    data = encode(needs)
    points = [{**point, "fits": point["needed_mb"] <= needs.available_mb} for point in data.pop("points")]
    return {"node": node.name, **data, "points": points}


def _cell(point: NeedPoint, available_mb: int) -> str:
    text = f"{point.needed_mb:,} MB"
    return text if point.needed_mb <= available_mb else f"{text} (no room)"


def _slots(count: int) -> str:
    return f"{count} slot{'' if count == 1 else 's'}"
