"""The use cases behind `rbee models`: the catalogs of the nodes, and what brings models there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rbee import audit
from rbee.base.errors import NodeError
from rbee.base.events import silent
from rbee.context import Context
from rbee.inventory import Node
from rbee.models.newer import pull_model
from rbee.models.provision import local_parts, push_file, push_model
from rbee.models.ref import parse_ref
from rbee.node.hive_client import HiveClient
from rbee.node.session import NodeSession, PerNode, on_each, open_session
from rbee.setup.attach import attach
from rbee_remote.protocol import ErrorCode, LoadOptions, ModelInfo, ModelNeeds, NeedsRequest
from rbee_remote.protocol.elsewhere import FoundElsewhere
from rbee_remote.protocol.load_options import NO_ADAPTERS


@dataclass(frozen=True, slots=True)
class Listed:
    """catalog: what rbee knows. elsewhere: what other programs of the node have beside that."""

    catalog: Sequence[ModelInfo] = ()
    elsewhere: Sequence[FoundElsewhere] = ()


async def models(context: Context, nodes: Sequence[Node]) -> list[PerNode[Listed]]:
    """The models of each node; a node that rbee never set up has none, and is left as it is."""

    async def ask(session: NodeSession) -> Listed:
        hive = await _hive_where_set_up(session)
        if not hive:
            return Listed()
        models = await hive.models()
        paths = {model.path for model in models}
        return Listed(models, [each for each in await hive.elsewhere() if each.path not in paths])

    return await on_each(replace(context, emit=silent), nodes, ask)


async def model_needs(
    context: Context, nodes: Sequence[Node], ref: str, asked: LoadOptions
) -> list[PerNode[ModelNeeds | None]]:
    """What a model is, and what it needs, on each node that has it; None where it is not.

    asked: how it would be loaded, and with ctx or slots for which context or number of slots alone.
    A node that rbee never set up is left as it is. Raises UsageError for a ref that is none.
    """
    wanted = parse_ref(ref)

    async def ask(session: NodeSession) -> ModelNeeds | None:
        hive, node = await _hive_where_set_up(session), session.node
        if not hive:
            return None
        options = replace(asked.over(node.load), ctx=None, slots=None, **NO_ADAPTERS).for_worker(node.backend)
        ctx = (asked.ctx,) if asked.ctx else ()
        slots = (asked.slots,) if asked.slots else ()
        try:
            return await hive.needs(NeedsRequest(wanted.canonical, options, ctx=ctx, slots=slots, sandbox=node.sandbox))
        except NodeError as error:
            if error.code is not ErrorCode.MODEL_NOT_FOUND:
                raise
            return None

    return await on_each(replace(context, emit=silent), nodes, ask)


async def _hive_where_set_up(session: NodeSession) -> HiveClient | None:
    """The node's hive, started if need be; None on a node that rbee never set up."""
    found = await session.probe()
    return (await attach(session)).hive if found.runtimes and found.payloads else None


async def pull(context: Context, node: Node, ref: str, *, refresh: bool = False) -> ModelInfo:
    """Have a model on a node: downloaded there, or pushed when the node has no way out. refresh: the newest one."""
    wanted = parse_ref(ref)  # before anything is put on the node for its sake
    recorded = audit.recorded(context.settings, "model.pull", emit=context.emit, node=node.name, model=wanted.canonical)
    with recorded as details:
        async with open_session(context, node) as session:
            await attach(session)
            info = await pull_model(session, wanted, refresh=refresh)
        details["bytes"] = info.size
        return info


async def push(context: Context, node: Node, model: Path | str) -> ModelInfo:
    """Send a model from here: a file of this machine, or what a ref names, downloaded here first."""
    wanted = model if isinstance(model, Path) else parse_ref(model)
    if isinstance(wanted, Path):
        local_parts(wanted)  # before anything is put on the node for its sake
    name = str(wanted) if isinstance(wanted, Path) else wanted.canonical
    with audit.recorded(context.settings, "model.push", emit=context.emit, node=node.name, model=name) as details:
        async with open_session(context, node) as session:
            await attach(session)
            sent = push_file(session, wanted) if isinstance(wanted, Path) else push_model(session, wanted)
            info = await sent
        details["bytes"] = info.size
        return info


async def remove_model(context: Context, node: Node, ref: str) -> ModelInfo:
    """Take a model out of a node's catalog, and off its disk where rbee put it there."""
    wanted = parse_ref(ref)
    with audit.recorded(context.settings, "model.rm", emit=context.emit, node=node.name, model=wanted.canonical):
        async with open_session(context, node) as session:
            return await (await attach(session)).hive.remove(wanted.canonical)
