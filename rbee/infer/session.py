"""One `infer` request, now: what was asked, its clock and deadline, and its sessions with nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from rbee.base.deadline import Deadline
from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import Emit, Notice, Phase
from rbee.base.retries import REOPEN_TIMEOUT_S
from rbee.context import Context
from rbee.infer.phases import PhaseClock
from rbee.infer.request import InferRequest
from rbee.inventory import Node
from rbee.models.able import check_able, said_abilities
from rbee.models.ref import DEFAULT_MODEL, ModelRef, parse_ref
from rbee.node.session import NodeSession
from rbee.registry import Registry
from rbee_remote.protocol import ChatOptions, ErrorCode, LoadOptions, ModelInfo

#: Reasons to try the next node, where the user named none.
NO_ROOM = frozenset({ErrorCode.RAM_EXHAUSTED, ErrorCode.VRAM_EXHAUSTED, ErrorCode.BACKEND_UNAVAILABLE})


class InferSession:
    """registry: whoever opened it closes it. deadline: told to hive and worker, too.

    started: ids of workers whose start is in the audit log. Used as `async with`; at its end connections are closed.
    """

    def __init__(self, request: InferRequest, context: Context, registry: Registry) -> None:
        self.request = request
        self.context = context
        self.registry = registry
        self.clock = PhaseClock(context.emit)
        self.deadline = Deadline.after(request.timeout_s)
        self.started: set[str] = set()
        self._chats: dict[str, ChatOptions] = {}
        self._nodes: dict[str, NodeSession] = {}
        self._held = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    @property
    def emit(self) -> Emit:
        return self.context.emit

    def ref(self, node: Node) -> ModelRef:
        """The model to use on a node. Raises UsageError for a ref that is none."""
        return parse_ref(self.request.model or node.model or DEFAULT_MODEL)

    def able(self, nodes: Sequence[Node]) -> list[Node]:
        """Those whose model's ref alone does not tell that it cannot do what is asked: each node may have another one,
        or load it otherwise. Raises UsageError where there is none."""
        able, why = [], None
        for node in nodes:
            try:
                model = self.ref(node).canonical
                check_able(model, said_abilities(model, self.request.load.over(node.load)), self.request.ability)
            except RbeeError as error:
                if "able" in error.details:
                    why = why or error
                    continue
            able.append(node)
        if why and not able:
            raise why
        return able

    def ability(self, node: Node) -> str:
        """What the file of a node's model has to tell that it can do; "" where that was told already."""
        said = self.request.load.over(node.load).pooling
        return self.request.ability if said in (None, "auto") else ""

    async def load(self, on: NodeSession, model: ModelInfo) -> LoadOptions:
        """How the model is to be loaded on a node that has it. model: unused here, for who asks by what it can."""
        del model
        return self.request.load.over(on.node.load)

    def chat(self, node: Node) -> ChatOptions:
        """How the messages become a prompt on a node. Raises ConfigError for a template that cannot be read."""
        chat = self.request.chat
        if node.template is None or chat.template or not self.request.messages:
            return chat
        if node.name not in self._chats:
            from rbee.inventory.template import read_template

            self._chats[node.name] = replace(chat, template=read_template(node))
        return self._chats[node.name]

    async def on(self, node: Node) -> NodeSession:
        """The session with a node, opened once."""
        if node.name not in self._nodes:
            session = NodeSession(self.context, self.registry, node)
            self._nodes[node.name] = await self._held.enter_async_context(session)
        return self._nodes[node.name]

    async def reconnect(self, node: Node, error: ConnectError) -> None:
        """Open a connection in place of the one that broke with `error`, which is told.

        Raises `error` itself where the node was never connected to, or something hangs on it; else ConnectError
        CONNECTION_LOST where that fails.
        """
        session = self._nodes.get(node.name)
        if session is None or error.code is not ErrorCode.CONNECTION_LOST:
            raise error
        self.emit(Notice(f"lost the connection to {node.name}, trying again"))
        try:
            async with asyncio.timeout(REOPEN_TIMEOUT_S):
                await session.connection.reopen()
        except (ConnectError, TimeoutError) as why:
            message = f"lost the connection to {node.name} and could not reconnect"
            raise ConnectError(error.code, message, hint=error.hint, details=error.details) from why

    def may_go_on(self, error: RbeeError) -> bool:
        """Whether another node may answer instead: nothing was answered yet, and the error is this node's alone."""
        elsewhere = isinstance(error, ConnectError) or error.code in NO_ROOM
        return elsewhere and self.clock.current is not Phase.INFERENCE

    @asynccontextmanager
    async def in_time(self, save: Callable[[], dict[str, str]] = dict) -> AsyncIterator[None]:
        """Raises NodeError DEADLINE_EXCEEDED when the deadline passes inside. save: as of `deadline_exceeded`, then."""
        try:
            async with asyncio.timeout(self.deadline.left()):
                yield
        except TimeoutError as error:
            raise self.deadline_exceeded(save()) from error

    def deadline_exceeded(self, saved: dict[str, str]) -> NodeError:
        """saved: how far the answer came and where its text is, as details."""
        phase = self.clock.current
        return NodeError(
            ErrorCode.DEADLINE_EXCEEDED,
            f"the deadline of {self.request.timeout_s:g} s passed in phase {phase.value} ({phase.name.lower()})",
            hint="allow more time with `--timeout`",
            details={**saved},
        )
