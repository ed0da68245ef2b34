"""How a chat comes by its answers: one turn, one `infer`, over connections that are held from turn to turn.

Rules
- The node that answered last is asked first: its worker has the chat in its memory, up to the new message.
- Where the user left the node open, one that is lost gives way to another; not while its answer is on the screen: the
  turn can be asked again, elsewhere.
- A worker is got ready while the user types. That is a favour: what goes wrong with it is told, and the answer tries
  again.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from rbee import audit
from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import Emit, Event, Finished, Notice, Reasoning, Token
from rbee.context import Context
from rbee.infer.infer import infer, on_some_node, ready_worker
from rbee.infer.recorded import what_came
from rbee.infer.request import InferRequest
from rbee.infer.session import NO_ROOM, InferSession
from rbee.inventory import Node
from rbee.models.ref import parse_ref
from rbee.node.pool import Pool
from rbee.registry import FRESH_S, WorkerRow
from rbee_remote.protocol import ErrorCode

T = TypeVar("T")

#: After so many seconds without word of the worker it is looked at again when the user begins to type: a little
#: sooner than the registry stops to believe in it.
LOOK_AGAIN_S = 0.75 * FRESH_S
_ELSEWHERE = NO_ROOM | {ErrorCode.ALL_SLOTS_BUSY, ErrorCode.NODE_BUSY}


@dataclass(frozen=True, slots=True)
class Place:
    """Where answers come from. ctx: tokens that one chat can have there, 0 while unknown."""

    node: str
    model: str
    ctx: int


class Heard:
    """What came of one answer, which goes on to `emit`."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._text: list[str] = []
        self._reasoning: list[str] = []

    def __call__(self, event: Event) -> None:
        match event:
            case Token():
                self._text.append(event.text)
            case Reasoning():
                self._reasoning.append(event.text)
        self._emit(event)

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def is_empty(self) -> bool:
        return not (any(self._text) or any(self._reasoning))


class Asking:
    """place: where the last answer came from, or the next is got ready; None for nowhere yet. Used by one chat."""

    def __init__(self, context: Context) -> None:
        self._pool = Pool(context)
        self._context = replace(context, connections=self._pool)
        self.place: Place | None = None
        self._lost: set[str] = set()
        self._heard_at = float("-inf")

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def leave(self) -> None:
        """Another model or node was asked for."""
        self.place = None
        self._lost.clear()
        self._heard_at = float("-inf")

    @property
    def is_stale(self) -> bool:
        """Whether nothing was heard of the worker for so long that it is worth a look."""
        return time.monotonic() - self._heard_at > LOOK_AGAIN_S

    async def answer(self, request: InferRequest, heard: Heard) -> Finished:
        """One answer; what comes of it is heard. Raises as `infer`."""
        finished = await self._somewhere(request, heard, self._infer)
        self._is_at(Place(finished.node, finished.model, self._ctx(finished)))
        return finished

    async def get_ready(self, request: InferRequest, emit: Emit) -> None:
        """Connect, and have a worker that serves. Raises as `infer`."""
        self._is_at(await self._somewhere(request, Heard(emit), self._ready))

    def _is_at(self, place: Place) -> None:
        self.place, self._heard_at = place, time.monotonic()
        self._lost.discard(place.node)

    async def _somewhere(
        self, request: InferRequest, heard: Heard, work: Callable[[InferRequest, Heard], Awaitable[T]]
    ) -> T:
        inventory = self._context.inventory
        nodes = inventory.select(request.node) if request.node else inventory.among(request.among)
        home = self.place.node if self.place else None
        for way in (tries := ways(request, [node.name for node in nodes], home, self._lost)):
            try:
                return await work(way, heard)
            except (ConnectError, NodeError) as error:
                if way.node and isinstance(error, ConnectError):
                    self._lost.add(way.node)
                if way is tries[-1] or not heard.is_empty or not _may_go_on(error):
                    raise
                heard(Notice(f"{error.message}; asking another node"))
        raise AssertionError("the last try returns or raises")

    async def _infer(self, request: InferRequest, heard: Heard) -> Finished:
        context = replace(self._context, emit=heard)
        with audit.recorded(context.settings, "chat", emit=heard, node=request.node or "") as details:
            details["model"] = parse_ref(request.model).canonical if request.model else None
            finished = await infer(request, context)
            details.update(what_came(finished))
        return finished

    async def _ready(self, request: InferRequest, heard: Heard) -> Place:
        context = replace(self._context, emit=heard)
        with context.open_registry() as registry:
            async with InferSession(request, context, registry) as session:
                return await on_some_node(session, _ready_on)

    def _ctx(self, finished: Finished) -> int:
        """Of the worker that answered, as the registry has it."""
        with self._context.open_registry() as registry:
            rows = [row for row in registry.rows(finished.node) if row.worker_id == finished.worker]
        known = self.place.ctx if self.place and self.place.node == finished.node else 0
        return rows[0].ctx if rows else known


async def _ready_on(session: InferSession, node: Node, row: WorkerRow | None) -> Place:
    """A worker that the registry knows is asked whether it is there; else phases 2 to 7."""
    if row is not None:
        async with session.in_time():
            on = await session.on(node)
        try:
            await on.worker_at(row.socket, row.worker_id, row.secret).health()
        except NodeError:
            session.registry.drop(node.name, row.worker_id)
        else:
            session.registry.seen(node.name, row.worker_id)
            return Place(node.name, row.model, row.ctx)
    ready = await ready_worker(session, node)
    return Place(node.name, ready.info.model, ready.info.ctx)


def ways(request: InferRequest, nodes: Sequence[str], home: str | None, lost: set[str]) -> list[InferRequest]:
    """The request as it is tried in turn: at home, elsewhere, and where the connection was lost before."""
    if len(nodes) < 2:
        return [request]
    first = [home] if home in nodes and home not in lost else []
    others = tuple(node for node in nodes if node not in lost and node not in first)
    last = tuple(node for node in nodes if node in lost)
    return [replace(request, node=node) for node in first] + [
        replace(request, node=None, among=among) for among in (others, last) if among
    ]


def _may_go_on(error: RbeeError) -> bool:
    return isinstance(error, ConnectError) or error.code in _ELSEWHERE
