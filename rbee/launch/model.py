"""The model that a launched program gets: on a node, loaded, with a context that its prompts fit into."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Notice
from rbee.context import Context
from rbee.infer.infer import ReadyWorker, on_some_node, ready_worker
from rbee.infer.placement import is_loaded_as, loaded_as
from rbee.infer.request import InferRequest
from rbee.infer.session import NO_ROOM, InferSession
from rbee.inventory import Node
from rbee.inventory.aliases import ModelAlias
from rbee.node.session import NodeSession
from rbee.registry import Registry, WorkerRow
from rbee_remote.protocol import LoadOptions, ModelInfo, WorkerInfo, WorkerState
from rbee_remote.protocol.abilities import CHAT
from rbee_remote.protocol.load_options import AUTO_CTX

#: Tokens of context that an agent gets where nobody named a number, and what its first prompt has, tools included.
ROOMY_CTX, FIRST_PROMPT = 32768, 20000
#: Requests at once: an agent has one, and another for titles and helpers of its own.
_SLOTS = 2
_USABLE = frozenset(WorkerState) - {WorkerState.STOPPING, WorkerState.FAILED}
_NO_WORD = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Loaded:
    """name: what the program calls the model. ctx: tokens. alias: under which the gateway knows it as it is loaded."""

    name: str
    ctx: int
    alias: ModelAlias


class _Roomy(InferSession):
    """Where nobody named a context, it is what agents need, as far as the model was trained for it; where nobody named
    slots, they are as few as an agent needs, or those of a worker that is there and has more."""

    def __init__(self, asked: InferRequest, context: Context, registry: Registry, slots: int) -> None:
        super().__init__(replace(asked, needs=CHAT), context, registry)
        self._slots = slots

    async def load(self, on: NodeSession, model: ModelInfo) -> LoadOptions:
        """Raises UsageError for a model that was trained for less than a first prompt has."""
        load, trained = await super().load(on, model), model.meta.n_ctx_train
        if load.ctx is None:
            if trained < FIRST_PROMPT:
                raise UsageError(
                    f"{model.model} was trained for {trained:,} tokens; prompts of agents begin at {FIRST_PROMPT:,}",
                    hint=f"take another model with --model, or --ctx {trained} to try it all the same",
                )
            load = replace(load, ctx=min(ROOMY_CTX, trained))
        if load.slots is not None:
            return load
        return replace(load, slots=slots_there(await on.attached.hive.workers(), model.model, load, self._slots))


def slots_there(workers: Sequence[WorkerInfo], model: str, load: LoadOptions, least: int) -> int:
    """`least`, or else those of a worker that has more and is loaded as `load` says: another copy of the model beside
    it would serve nobody."""
    there = [each for each in workers if each.model == model and each.state in _USABLE and each.slots >= least]
    fit = (each.slots for each in there if is_loaded_as(load, each.ctx, each.slots, loaded_as(each.options)))
    return least if load.ctx == AUTO_CTX else min(fit, default=least)


async def load(context: Context, asked: InferRequest, alias: ModelAlias | None) -> Loaded:
    """Phases 1 to 7, reported as those of `rbee infer`. alias: what `asked` names, with what else that says.

    Raises what these phases raise, and UsageError for a model whose context cannot hold a first prompt, where nobody
    named one.
    """
    with context.open_registry() as registry:
        for slots in (_SLOTS, 1) if asked.load.slots is None else (asked.load.slots,):
            try:
                async with _Roomy(asked, context, registry, slots) as session:
                    ready = await on_some_node(session, _ready)
                break
            except NodeError as error:
                if error.code not in NO_ROOM or slots == 1 or asked.load.slots is not None:
                    raise
                context.emit(Notice(f"{error.message}; one request at once is tried"))
    info = ready.info
    if info.ctx < FIRST_PROMPT:
        context.emit(Notice(f"{info.ctx:,} tokens of context are few: prompts of agents begin at {FIRST_PROMPT:,}"))
    name = alias.name if alias else _NO_WORD.sub("-", info.model.rpartition("/")[2]).strip("-.")
    loaded = LoadOptions(ctx=info.ctx, slots=info.slots).over(asked.load)
    known = replace(alias, load=loaded) if alias else ModelAlias(name, info.model, load=loaded)
    return Loaded(name, info.ctx, known)


async def _ready(session: InferSession, node: Node, row: WorkerRow | None) -> ReadyWorker:
    """Whatever the registry knows: its row has no word of how many tokens the model was trained for."""
    del row
    return await ready_worker(session, node)
