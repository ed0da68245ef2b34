"""One node that is held: its connection, its hive's news and its workers', opened anew for as long as the gateway runs.

Rules
- Whatever the node does, it happens in the link's own tasks: nobody waits for a node whom it does not concern.
- A hive that is silent is no reason to close the connection: its workers' answers go over it.
- A hive that has ended is started again by who needs a worker (`setup.attach`), and not from here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.events import Notice
from rbee.base.retries import HOLD_AGAIN_S, HOLD_CONNECT_S, HOLD_SILENCE_S
from rbee.gateway.base.views import NodeState, NodeView
from rbee.gateway.nodes.followers import Followers
from rbee.gateway.nodes.node_news import NodeNews
from rbee.gateway.nodes.pauses import Pauses
from rbee.inventory import Node
from rbee.node.raw_http import KeptStreams
from rbee.node.session import Attached, NodeSession
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import ErrorCode, HiveNews, ModelInfo, WorkerInfo
from rbee_remote.system.changes import Changes

#: Streams in a row that could not be opened over a connection that answers: a node with too much to do is no reason to
#: end what goes over it, a server that opens none any more is.
_MOST_DOUBTS = 3


class HeldSession(NodeSession):
    """A session that tells when its hive was found. hive_found: set then, for as long as that hive is followed."""

    hive_found: asyncio.Event

    def remember(self, attached: Attached, *, python: str, payload: str, platform: str = "", backend: str = "") -> None:
        super().remember(attached, python=python, payload=payload, platform=platform, backend=backend)
        self.hive_found.set()


class NodeLink:
    """session: not opened yet, and the link's alone. changed: called whenever `view` is another.

    in_flight: requests at each worker that has some, by id. streams: to its workers, for the next requests.
    """

    def __init__(self, session: HeldSession, changed: Callable[[], None]) -> None:
        session.hive_found = asyncio.Event()
        self.session = session
        self.news = NodeNews()
        self.in_flight: Counter[str] = Counter()
        self.load_s: dict[str, float] = {}
        self.streams = KeptStreams()
        self._changed = changed
        self._view: NodeView | None = None
        self._state = NodeState.CONNECTING
        self._reason = ""
        self._held = AsyncExitStack()
        self._connections = Changes()  # told when there is another connection, or the first try has failed
        self._connected = False
        self._entered = False
        self._doubts = 0
        self._pauses = Pauses()
        self._followers = Followers(session, self.news, self.touch)
        self._running: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None  # while a node that was up is connected to again

    def start(self) -> None:
        self._running = asyncio.create_task(self._run(), name=f"hold {self.node.name}")

    @property
    def node(self) -> Node:
        return self.session.node

    @property
    def view(self) -> NodeView:
        if self._view is None:
            self._view = NodeView(
                name=self.node.name,
                state=self._state,
                tags=self.node.tags,
                models=self.news.models,
                workers=self.news.views(self.node.name, self.in_flight),
                max_workers=self.node.max_workers,
                load_s=dict(self.load_s),
                load=self.node.load,
                reason=self._reason,
                in_doubt=self.news.in_doubt(self.node.name),
            )
        return self._view

    def touch(self) -> None:
        """What the view is made of has changed."""
        self._view = None
        self._changed()

    async def aclose(self) -> None:
        if self._running:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self._patience:
            self._patience.cancel()
        await self._followers.aclose()
        await self.streams.aclose()
        await self._held.aclose()

    # --- for who uses the node ----------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """Grows with each connection, and with a first try that fails."""
        return self._connections.count

    def connected(self) -> HeldSession:
        """Raises ConnectError where there is no connection now."""
        if not self._connected:
            raise self._unreachable()
        return self.session

    async def reached(self) -> HeldSession:
        """Waits for the first try to connect. Raises ConnectError where the last one has failed."""
        await self._connections.wait(seen=0)
        return self.connected()

    async def reached_again(self, seen: int) -> HeldSession:
        """Once `connections` is another than `seen`; of no use for a node that was never reached."""
        await self._connections.wait(seen=seen)
        return self.connected()

    def is_silent(self, worker_id: str) -> bool:
        """Whether nothing is heard of a worker, or of its node, that should be heard."""
        own = self.news.own.get(worker_id)
        return own is None or own.silent or not self._connected

    def begun(self, worker_id: str) -> None:
        self.in_flight[worker_id] += 1
        self.touch()

    def ended(self, worker_id: str) -> None:
        self.in_flight[worker_id] -= 1
        if self.in_flight[worker_id] <= 0:
            del self.in_flight[worker_id]
        self.touch()

    def doubt(self, worker_id: str) -> None:
        """A worker failed a request: it is asked for its news anew, and counts for nothing until they come."""
        if own := self.news.own.get(worker_id):
            own.doubtful = True
            self._followers.end(worker_id)
            if self._connected:
                self._followers.keep()
            self.touch()

    def started(self, info: WorkerInfo, model: ModelInfo, load_s: float | None) -> None:
        """A worker serves. load_s: seconds that its load took, None where it was there already."""
        self.news.of_start(info, model)
        if load_s is not None:
            self.load_s[info.model] = load_s
        self._followers.keep()
        self.touch()

    # --- the connection -----------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._hold()
            except Exception as error:
                self._down(error)
                if not self._connections.count:
                    self._connections.notify()
                await asyncio.sleep(self._pauses.after(error))

    async def _hold(self) -> None:
        """Connect, and follow what is there. Raises RbeeError: what it ended with."""
        await self._connect()
        lost = asyncio.create_task(self.session.connection.until_lost(HOLD_SILENCE_S))
        following = asyncio.create_task(self._follow_hives())
        try:
            await asyncio.wait({lost, following}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)  # a stream hears of a lost connection a moment before who waits for just that
            if lost.done():
                self._connected = False
                raise ConnectError(ErrorCode.CONNECTION_LOST, f"the connection to {self.node.name} was lost")
            following.result()
        finally:
            for task in (lost, following):
                task.cancel()
            await asyncio.gather(lost, following, return_exceptions=True)
            await self._followers.aclose()
            await self.streams.aclose()

    async def _connect(self) -> None:
        """Unless the connection is there and good. Raises as `open_connection`."""
        if self._connected:
            return
        try:
            async with asyncio.timeout(HOLD_CONNECT_S):
                if self._entered:
                    await self.session.connection.reopen()
                else:
                    await self._held.enter_async_context(self.session)
        except TimeoutError as error:
            raise ConnectError(
                ErrorCode.CONNECTION_TIMEOUT,
                f"{self.node.name} cannot be reached",
                details={"reason": f"no answer for {HOLD_CONNECT_S:g} s"},
            ) from error
        self._connected = self._entered = True
        self.news.trust()  # what failed a request did so with its connection; whether it lives, its hive says next
        self._connections.notify()

    def _up(self) -> None:
        if self._reason:
            self.session.emit(Notice(f"{self.node.name} is back"))
        self._reason, self._doubts = "", 0
        self._pauses.well()
        self._set_state(NodeState.UP)

    def _down(self, error: Exception) -> None:
        is_lost = isinstance(error, ConnectError) and not isinstance(error, SilenceError)
        if is_lost:
            self._doubts += 1
            if self._doubts >= _MOST_DOUBTS:
                self._connected = False
        reason = _reason(error).removeprefix(f"{self.node.name} ")
        if reason != self._reason:
            self.session.emit(Notice(f"{self.node.name} is down: {reason}"))
        self._reason = reason
        self._set_state(NodeState.CONNECTING if is_lost and self._state is NodeState.UP else NodeState.DOWN)

    def _set_state(self, state: NodeState) -> None:
        if self._patience:
            self._patience.cancel()
            self._patience = None
        self._state = state
        if state is NodeState.CONNECTING:
            later = asyncio.get_running_loop().call_later
            self._patience = later(HOLD_AGAIN_S, lambda: self._set_state(NodeState.DOWN))
        self.touch()

    def _unreachable(self) -> ConnectError:
        return ConnectError(
            ErrorCode.CONNECTION_LOST,
            f"{self.node.name} is not connected",
            hint=f"it is tried again all the time; `rbee nodes ping {self.node.name}` says more",
            details={"reason": self._reason or "it is being connected to"},
        )

    # --- its hive -----------------------------------------------------------------------------------------------

    async def _follow_hives(self) -> None:
        """One hive after the other; on a node of which nothing is known, once somebody has set it up. Raises RbeeError:
        what is wrong with the node."""
        from rbee.setup.attach import attach

        if not self.session.is_attached:
            if self.session.facts is not None:
                await attach(self.session)
            else:
                self._up()
        while True:
            if self.session.is_attached and not self.session.hive_found.is_set():
                await self._another_hive()
            await self.session.hive_found.wait()
            await self._follow_hive()
            self.session.hive_found.clear()
            self.news.no_hive()
            self._followers.keep()
            self.touch()

    async def _follow_hive(self) -> None:
        """Returns when there is no hive any more. Raises SilenceError, ConnectError, NodeError INVALID_RESPONSE."""
        hive = self.session.attached.hive
        try:
            async with hive.follow(silence_s=HOLD_SILENCE_S) as events:
                async for news in events:
                    self._heard(news)
        except NodeError as error:
            if error.code is not ErrorCode.WORKER_GONE:
                raise

    async def _another_hive(self) -> None:
        """Look at once, and then until a hive runs again, whoever has started it. Raises as `HiveClient.health`."""
        pauses = Pauses()
        while not self.session.hive_found.is_set():
            if await self.session.attached.hive.health_or_none():
                self.session.hive_found.set()
                return
            self._up()
            with suppress(TimeoutError):
                async with asyncio.timeout(pauses.after(HungUpError("news"))):
                    await self.session.hive_found.wait()

    def _heard(self, news: HiveNews) -> None:
        self.news.of_hive(news)
        self._followers.keep()
        self._up()


def _reason(error: Exception) -> str:
    if not isinstance(error, RbeeError):
        return f"{type(error).__name__}: {error}"
    more = error.details.get("reason")
    return f"{error.message} ({more})" if more else error.message
