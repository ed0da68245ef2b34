"""Which of several nodes `--wait-for-gpu` means: those with a GPU that llama.cpp can use, now or once it is built."""

from __future__ import annotations

from collections.abc import Sequence

from rbee.base.events import Notice
from rbee.infer.session import InferSession
from rbee.inventory import Node
from rbee.node.session import on_each
from rbee.setup.index.builders import Builders
from rbee.setup.runtime import Runtime
from rbee.setup.wheels.cache import WheelCache

#: Seconds for a look at nodes of which some may not be there.
LOOK_S = 15.0


async def gpus_first(session: InferSession, nodes: Sequence[Node]) -> list[Node]:
    """Those with a GPU, in this order: it works now; it does once llama.cpp is built. All of them, with a notice, where
    there is none. Which GPUs a node has no registry keeps, so each is asked."""
    context = session.context
    cache = WheelCache.of(context.settings)
    seen = await on_each(context, nodes, lambda on: on.probe(), deadline_s=LOOK_S)
    now, later = [], []
    for each in seen:
        if each.value is None:
            continue
        builders = Builders.of(each.node, context.inventory.nodes)
        if Runtime.choose(each.value, each.node, cache, builders).backend != "cpu":
            now.append(each.node)
        elif Runtime.choose(each.value, each.node, cache, builders, wait_for_gpu=True).backend != "cpu":
            later.append(each.node)
    if not now and not later:
        names = ", ".join(node.name for node in nodes)
        session.emit(Notice(f"none of {names} has a GPU that llama.cpp can use or be built for; a CPU answers"))
        return list(nodes)
    return [*now, *later]
