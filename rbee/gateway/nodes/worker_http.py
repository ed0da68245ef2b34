"""A worker's HTTP, over the connection to its node that is held."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from rbee.base.errors import NodeError
from rbee.base.who import who
from rbee.gateway.base.interfaces import RawResponse
from rbee.gateway.base.views import WorkerKey
from rbee.gateway.nodes.node_link import NodeLink
from rbee.node.raw_http import Listener, exchange
from rbee_remote.protocol import HEADER_KEEPER, HEADER_WHO, HEADER_WORKER, ErrorCode, greeting, keeper_socket


class LinkedWorker:
    """A `WorkerHttp`. link: finds the one to its node at each request, None for a node that is not held any more."""

    def __init__(self, key: WorkerKey, link: Callable[[], NodeLink | None]) -> None:
        self._key = key
        self._link = link

    @asynccontextmanager
    async def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> AsyncIterator[RawResponse]:
        """As `WorkerHttp.send`."""
        link = self._link()
        if link is None:
            raise self._gone()
        session = link.connected()
        to = self._listener(link)
        async with exchange(session.connection, to, method, path, headers, body, link.streams) as answer:
            yield answer

    def _listener(self, link: NodeLink) -> Listener:
        info = link.news.workers.get(self._key.id)
        if info is None:
            raise self._gone()
        own = {HEADER_KEEPER: link.session.context.keeper_id, HEADER_WHO: who(), HEADER_WORKER: info.id}
        secret = info.secret
        socket, first = (keeper_socket(info.socket), greeting(secret)) if secret else (info.socket, b"")
        return Listener(socket, first, own, lambda: link.is_silent(info.id))

    def _gone(self) -> NodeError:
        return NodeError(ErrorCode.WORKER_GONE, f"the worker {self._key.id[:8]} on {self._key.node} is gone")
