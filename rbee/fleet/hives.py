"""The use cases behind `rbee hive`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rbee import audit
from rbee.base.events import silent
from rbee.context import Context
from rbee.fleet.workers import PATIENCE_S
from rbee.inventory import Node
from rbee.node.hung_hive import does_not_answer, end_by_signals
from rbee.node.session import NodeSession, PerNode, on_each, open_session
from rbee.node.socket_http import NonsenseError, SilenceError
from rbee_remote.protocol import HiveInfo, StopRequest


async def hives(context: Context, nodes: Sequence[Node]) -> list[PerNode[HiveInfo | None]]:
    """The hive of each node, None where none runs."""

    async def ask(session: NodeSession) -> HiveInfo | None:
        hive = await session.running_hive()
        return hive.info if hive else None

    return await on_each(replace(context, emit=silent), nodes, ask)


async def stop_hive(context: Context, node: Node, *, drain: bool, patience_s: float = PATIENCE_S) -> bool:
    """Stop a node's workers and its hive; whether one ran.

    drain: running requests finish first, and a hive that does not answer is left alone: ConnectError. Else it is ended
    by signals; NodeError when even that does nothing. patience_s: of each step of the escalation.
    """
    recorded = audit.recorded(context.settings, "hive.stop", emit=context.emit, node=node.name)
    with recorded as details:
        async with open_session(context, node) as session:
            try:
                hive = await session.running_hive()
                stopped = await hive.client.stop(StopRequest(drain=drain, patience_s=patience_s)) if hive else None
                details["workers"] = stopped.workers if stopped else None
                ran = stopped is not None
            except (SilenceError, NonsenseError) as error:
                if drain:
                    raise does_not_answer(node.name, error) from error
                await end_by_signals(session, patience_s=patience_s)
                details["by"], ran = "signals", True
            session.registry.sync_node(node.name, [])
            return ran
