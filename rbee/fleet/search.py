"""`rbee models search`: what the hub has, and which nodes have the memory for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee.base.errors import RbeeError
from rbee.base.events import silent
from rbee.context import Context
from rbee.inventory import Node
from rbee.models.downloads import search_request
from rbee.models.room import memory_of
from rbee.models.store import ModelStore
from rbee.node.session import NodeSession, PerNode, on_each
from rbee.setup.base.payload import build_payload
from rbee_remote.protocol.search import FoundModel, Room


@dataclass(frozen=True, slots=True)
class Found:
    """rooms: of the nodes that answered. failed: of the others."""

    models: tuple[FoundModel, ...]
    rooms: tuple[Room, ...]
    failed: tuple[RbeeError, ...]


async def search(context: Context, nodes: Sequence[Node], words: str, *, limit: int, ctx: int) -> Found:
    """Nothing is put on a node: what it has of memory is asked. Raises NodeError DOWNLOAD_FAILED, ConfigError."""
    answers = await on_each(replace(context, emit=silent), nodes, _room) if nodes else list[PerNode[Room]]()
    rooms = tuple(answer.value for answer in answers if answer.value)
    store = ModelStore.of(context.settings, build_payload())
    answer = await store.search(search_request(words, limit, rooms, ctx))
    return Found(answer.models, rooms, tuple(answer.error for answer in answers if answer.error))


async def _room(session: NodeSession) -> Room:
    return memory_of(session.node, await session.probe())
