"""The use cases behind `rbee workers`: asked live, and the registry brought up to date on the way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from rbee import audit
from rbee.base.errors import NodeError, UsageError
from rbee.base.events import Notice, silent
from rbee.context import Context
from rbee.inventory import Node
from rbee.node.session import NODE_DEADLINE_S, NodeSession, PerNode, on_each, open_session
from rbee.registry import Changes
from rbee_remote.protocol import ErrorCode, StopRequest, WorkerInfo, WorkerStatus

#: What each step of an escalation gets where nobody says.
PATIENCE_S = StopRequest().patience_s


async def workers(context: Context, nodes: Sequence[Node]) -> list[PerNode[list[WorkerInfo]]]:
    """The workers of each node, as its hive says now; the registry is brought up to date on the way."""

    async def ask(session: NodeSession) -> list[WorkerInfo]:
        found, _ = await _synced(session)
        return found

    return await on_each(replace(context, emit=silent), nodes, ask)


async def sync(
    context: Context, nodes: Sequence[Node], *, deadline_s: float = NODE_DEADLINE_S
) -> list[PerNode[Changes]]:
    """Make the registry's rows of each node what its hive says now; a node that does not answer keeps its rows.

    deadline_s: of each node.
    """

    async def ask(session: NodeSession) -> Changes:
        _, changes = await _synced(session)
        return changes

    return await on_each(replace(context, emit=silent), nodes, ask, deadline_s=deadline_s)


async def rebuild(context: Context) -> None:
    """Fill a registry that lost its rows: all nodes are asked at once, and those that do not answer soon are named."""
    answers = await sync(replace(context, ask=None, ask_passphrase=None), context.inventory.select("all"), deadline_s=5)
    found = sum(len(answer.value.added) for answer in answers if answer.value)
    unheard = [answer.node.name for answer in answers if answer.error]
    text = f"the registry was rebuilt from the hives: {found} worker{'' if found == 1 else 's'} found"
    if unheard:
        text += f"; no answer from {', '.join(unheard)}: `rbee workers sync` asks again"
    context.emit(Notice(text))


async def _synced(session: NodeSession) -> tuple[list[WorkerInfo], Changes]:
    """What the hive of a node says, and what that changed in the registry. No hive has no workers."""
    hive, name = await session.running_hive(), session.node.name
    asked_at = time.time()
    if not hive:
        return [], session.registry.sync_node(name, [], asked_at=asked_at)
    found, info = await hive.client.workers(), hive.info
    return found, session.registry.sync_node(
        name, found, hive_instance=info.instance, payload=info.payload, asked_at=asked_at
    )


async def find_worker(context: Context, nodes: Sequence[Node], prefix: str) -> tuple[Node, WorkerInfo]:
    """The one worker whose id begins with `prefix`. Raises UsageError for none and for several."""
    asked = await workers(context, nodes)
    found = [(row.node, info) for row in asked for info in row.value or [] if info.id.startswith(prefix)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{len(found)} workers have an id that begins with {prefix!r}", hint="give more characters of the id"
        )
    unheard = [row.node.name for row in asked if row.error]
    raise UsageError(
        f"no worker has an id that begins with {prefix!r}",
        hint=f"these nodes did not answer: {', '.join(unheard)}" if unheard else "`rbee workers list` shows all",
    )


async def worker_health(
    context: Context, nodes: Sequence[Node]
) -> list[PerNode[list[tuple[WorkerInfo, WorkerStatus | None]]]]:
    """What each worker itself says; None for one that its hive lists but that does not answer."""

    async def ask(session: NodeSession) -> list[tuple[WorkerInfo, WorkerStatus | None]]:
        hive = await session.running_hive()
        infos = await hive.client.workers() if hive else []
        return [(info, await _health(session, info)) for info in infos]

    return await on_each(replace(context, emit=silent), nodes, ask)


async def _health(session: NodeSession, info: WorkerInfo) -> WorkerStatus | None:
    try:
        return await session.worker_at(info.socket, info.id, info.secret).health()
    except NodeError:
        return None


async def stop_worker(
    context: Context, node: Node, worker_id: str, *, drain: bool, patience_s: float = PATIENCE_S
) -> WorkerInfo:
    """Stop a worker; returns when its process is gone. drain: running requests finish first. patience_s: of each step
    of the escalation."""
    recorded = audit.recorded(context.settings, "worker.stop", emit=context.emit, node=node.name, worker=worker_id)
    with recorded as details:
        async with open_session(context, node) as session:
            hive = await session.running_hive()
            if not hive:
                raise NodeError(ErrorCode.WORKER_GONE, f"no hive runs on {node.name}", hint="nothing to stop")
            info = await hive.client.stop_worker(worker_id, StopRequest(drain=drain, patience_s=patience_s))
            session.registry.drop(node.name, worker_id)
        details["model"] = info.model
        return info
