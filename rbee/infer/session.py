"""One `infer` on its way: what it was asked, what it holds open, and what it may still try."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, RbeeError
from rbee.base.events import Emit, Notice, Phase
from rbee.context import Context
from rbee.infer.answer import Draft
from rbee.infer.phases import PhaseClock
from rbee.infer.request import InferRequest
from rbee.inventory import Node
from rbee.models.ref import ModelRef, parse_ref
from rbee.node.session import reach
from rbee.registry import Registry
from rbee.transport.reconnecting import Link
from rbee_remote.protocol import ErrorCode, WorkerInfo

if TYPE_CHECKING:
    from rbee.setup.attach import Attached

DEFAULT_MODEL = "smollm2:135m"
#: Reasons to try the next node, where the user named none.
NO_ROOM = frozenset({ErrorCode.RAM_EXHAUSTED, ErrorCode.VRAM_EXHAUSTED, ErrorCode.BACKEND_UNAVAILABLE})
#: Seconds for opening a connection in place of one that broke, all tries together.
REOPEN_TIMEOUT_S = 20.0


@dataclass(slots=True)
class Trip:
    """open_things: what is closed at its end. deadline: told to hive and worker, too. draft: of the answer, once it is
    asked for. started: ids of workers whose start is in the audit log."""

    request: InferRequest
    context: Context
    emit: Emit
    clock: PhaseClock
    registry: Registry
    open_things: AsyncExitStack
    deadline: Deadline = field(default_factory=Deadline)
    connections: dict[str, Link] = field(default_factory=dict)
    attached: Attached | None = None
    draft: Draft | None = None
    started: set[str] = field(default_factory=set)

    def ref(self, node: Node) -> ModelRef:
        """The model to use on a node."""
        return parse_ref(self.request.model or node.model or DEFAULT_MODEL)

    def record(self, node: Node, info: WorkerInfo, attached: Attached) -> None:
        self.registry.upsert_worker(
            node.name, info, hive_instance=attached.info.instance, payload=attached.info.payload
        )

    def may_go_on(self, error: RbeeError) -> bool:
        """Whether another node may answer instead: nothing was answered yet, and the error is this node's alone."""
        elsewhere = isinstance(error, ConnectError) or error.code in NO_ROOM
        return elsewhere and self.clock.current is not Phase.INFERENCE

    async def connect(self, node: Node) -> Link:
        """The connection to a node, opened once."""
        if node.name not in self.connections:
            way = reach(node, self.context, self.registry, self.emit)
            self.connections[node.name] = await self.open_things.enter_async_context(way)
        return self.connections[node.name]

    async def reconnected(self, node: Node, error: ConnectError) -> bool:
        """Whether there is a connection in place of the one that broke with `error`, which is told.

        A node that was never reached, or on which something hangs, is not tried again.
        """
        link = self.connections.get(node.name)
        if link is None or error.code is not ErrorCode.CONNECTION_LOST:
            return False
        self.emit(Notice(f"lost the connection to {node.name}, trying again"))
        try:
            async with asyncio.timeout(REOPEN_TIMEOUT_S):
                await link.reopen()
        except (ConnectError, TimeoutError):
            error.message = f"the connection to {node.name} was lost, and not to be had again"
            return False
        return True
