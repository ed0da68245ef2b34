"""The news of a node's workers, each followed for as long as its hive says that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rbee.base.errors import NodeError, RbeeError
from rbee.base.retries import HOLD_SILENCE_S
from rbee.gateway.nodes.node_news import NodeNews
from rbee.gateway.nodes.pauses import Pauses
from rbee.node.session import NodeSession
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import ErrorCode


class Followers:
    """Keep `news` of workers up to date. changed: called when they are other than before."""

    def __init__(self, session: NodeSession, news: NodeNews, changed: Callable[[], None]) -> None:
        self._session = session
        self._news = news
        self._changed = changed
        self._following: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def keep(self) -> None:
        """Follow those that serve, and no others."""
        serving = self._news.serving
        for worker_id in self._following.keys() - serving:
            self.end(worker_id)
        for worker_id in serving - self._following.keys():
            task = asyncio.create_task(self._follow(worker_id), name=f"follow worker {worker_id[:8]}")
            self._following[worker_id] = task

    def end(self, worker_id: str) -> None:
        """`keep` begins anew with it."""
        if task := self._following.pop(worker_id, None):
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    async def aclose(self) -> None:
        for worker_id in list(self._following):
            self.end(worker_id)
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _follow(self, worker_id: str) -> None:
        pauses = Pauses()
        while info := self._news.workers.get(worker_id):
            worker = self._session.worker_at(info.socket, info.id, info.secret)
            try:
                async with worker.follow(silence_s=HOLD_SILENCE_S) as events:
                    async for news in events:
                        pauses.well()
                        self._news.of_worker(worker_id, news)
                        self._changed()
                error: RbeeError = HungUpError("a worker's news")
            except RbeeError as why:
                error = why
            self._not_heard(worker_id, error)
            await asyncio.sleep(pauses.after(error))

    def _not_heard(self, worker_id: str, error: RbeeError) -> None:
        """A worker that answers, whatever it says, is there: one of another version may have no news to tell."""
        if own := self._news.own.get(worker_id):
            answers = isinstance(error, NodeError) and error.code is not ErrorCode.WORKER_GONE
            own.silent, own.doubtful = isinstance(error, SilenceError), not answers
            self._changed()
