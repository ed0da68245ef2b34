"""Requests wait here until a worker takes them: `routing` decides, this acts.

Rules
- All state is touched on the event loop's thread, and only between awaits.
- A worker gets what its slots hold and no more: what waits in a worker's own queue could not be reordered, nor go to
  another one that is free sooner. A slot stands empty for the way to it and back, which is little beside an answer.
- Each request that a worker takes is told to the fleet once when it begins and once when it ends.
- A load that was begun is waited for by all that want it. It is given up when nobody has wanted it for ABANDON_S.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from rbee.base.errors import NodeError, RbeeError
from rbee.gateway.base.interfaces import Fleet
from rbee.gateway.base.views import Waiting, Wanted, WorkerKey, WorkerView
from rbee.gateway.routing.loads import Loads
from rbee.gateway.routing.queue import Line, Queue, Waiter
from rbee.gateway.routing.routing import decide
from rbee.gateway.routing.situation import Refuse, Send, Situation, Start, Wait
from rbee.gateway.routing.watching import Watch
from rbee_remote.protocol import ErrorCode

#: Requests that wait for one model: more would wait for minutes at any node that this is made for.
MOST_WAITING = 256
#: While somebody waits, time alone changes what can be done: turns end, failures are forgiven.
TICK_S = 0.25
#: What a client is told to wait before it asks again.
LEAST_RETRY_S, MOST_RETRY_S = 1, 120

_log = logging.getLogger("rbee.gateway")


@dataclass(frozen=True, slots=True)
class WhoWaits:
    """longest_s: seconds that the first of them has waited."""

    model: str
    client: str
    count: int
    longest_s: float


class QueuedTicket:
    """As `interfaces.Ticket`."""

    def __init__(self, dispatcher: FleetDispatcher, waiter: Waiter) -> None:
        self._dispatcher = dispatcher
        self._waiter = waiter
        self.placed: asyncio.Future[WorkerView] = asyncio.get_running_loop().create_future()
        self._is_closed = False

    @property
    def waiting(self) -> Waiting:
        return self._dispatcher.waiting(self._waiter)

    async def worker(self) -> WorkerView:
        return await asyncio.shield(self.placed)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._dispatcher.leave(self._waiter, self)


class FleetDispatcher:
    """As `interfaces.Dispatcher`. Used as `async with`; at its end whoever waits is refused, and loads are given up.

    most_waiting: requests for one model.
    """

    def __init__(self, fleet: Fleet, *, most_waiting: int = MOST_WAITING) -> None:
        self._fleet = fleet
        self._most_waiting = most_waiting
        self._queue = Queue()
        self._tickets: dict[Waiter, QueuedTicket] = {}
        self._watch = Watch()
        self._loads = Loads(fleet, self._watch, self._wake)
        self._numbers = itertools.count()
        self._woken = asyncio.Event()
        self._own = 0  # changes of the fleet that are our own requests, which tell nothing new
        self._tasks: list[asyncio.Task[None]] = []
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow_fleet()), asyncio.create_task(self._run())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def queued(self) -> dict[str, int]:
        """How many wait, by model."""
        models = {waiter.wanted.targets[0].model for waiter in self._queue}
        return {model: self._queue.waiting_for(model) for model in models}

    def who_waits(self) -> list[WhoWaits]:
        """By model and key, in the order of who came first."""
        now, found = self._now(), dict[tuple[str, str], WhoWaits]()
        for waiter in sorted(self._queue, key=lambda waiter: waiter.entered_at):
            who = (waiter.wanted.targets[0].model, waiter.wanted.client)
            before = found.get(who) or WhoWaits(*who, 0, round(now - waiter.entered_at, 1))
            found[who] = replace(before, count=before.count + 1)
        return list(found.values())

    def enter(self, wanted: Wanted) -> QueuedTicket:
        if self._is_closed:
            raise self._ending()
        model = wanted.targets[0].model
        if self._queue.waiting_for(model) >= self._most_waiting:
            message = f"{self._most_waiting} requests wait for {model} already"
            raise self._busy(message, self._about_s(wanted))
        waiter = Waiter(wanted, self._now(), next(self._numbers))
        ticket = self._tickets[waiter] = QueuedTicket(self, waiter)
        if self._queue.add(waiter):
            self._serve()
        if ticket.placed.done() and (error := ticket.placed.exception()):
            ticket.close()
            raise error
        if not ticket.placed.done():
            self._woken.set()  # a longer queue may be worth another worker, and a deadline has to be watched
        return ticket

    def waiting(self, waiter: Waiter) -> Waiting:
        """Of a request that waits; of another what says nothing."""
        line = self._queue.line_of(waiter)
        if line is None or waiter not in self._tickets or self._tickets[waiter].placed.done():
            return Waiting()
        ahead, wait = self._queue.ahead_of(waiter), line.wait
        return Waiting(ahead + 1, wait.loading, wait.about_s + ahead * wait.each_s)

    def leave(self, waiter: Waiter, ticket: QueuedTicket) -> None:
        """Its ticket is closed."""
        self._queue.remove(waiter)
        self._tickets.pop(waiter, None)
        placed = ticket.placed
        if not placed.done():
            placed.cancel()
        elif not placed.cancelled() and placed.exception() is None:
            key = placed.result().key
            self._watch.used(key, self._now())
            self._count(self._fleet.ended, key)
        if len(self._queue):
            self._woken.set()

    async def aclose(self) -> None:
        """Idempotent."""
        self._is_closed = True
        for waiter in list(self._queue):
            self._fail(waiter, self._ending())
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._loads.aclose()

    # --- what runs ---------------------------------------------------------------------------------------------------

    async def _follow_fleet(self) -> None:
        seen, heard = self._fleet.version, self._fleet.version - self._own
        while True:
            await self._fleet.wait_changed(seen)
            seen = self._fleet.version
            if seen - self._own != heard:
                heard = seen - self._own
                self._woken.set()

    def _count(self, tell: Callable[[WorkerKey], None], key: WorkerKey) -> None:
        """Tell the fleet of a request of ours."""
        before = self._fleet.version
        tell(key)
        self._own += self._fleet.version - before

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            self._serve()
            try:
                async with asyncio.timeout(self._until_next()):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def _until_next(self) -> float | None:
        """Seconds after which to look again although nothing was heard."""
        if not len(self._queue):
            return self._loads.until_next(self._now())
        deadlines = (waiter.wanted.deadline for waiter in self._queue)
        next_s = min((each - self._now() for each in deadlines if each is not None), default=TICK_S)
        return max(0.0, min(next_s, TICK_S))

    def _serve(self) -> None:
        """Everything that can be done now."""
        try:
            now = self._now()
            self._watch.look(self._fleet.nodes, now)
            self._loads.look(self._fleet.nodes, self._queue, now)
            self._expire(now)
            self._place(now)
        except Exception as error:  # a bug must not leave requests waiting for ever
            _log.exception("placing requests failed")
            for waiter in list(self._queue):
                self._fail(waiter, error)

    def _expire(self, now: float) -> None:
        for waiter in list(self._queue):
            deadline = waiter.wanted.deadline
            if deadline is not None and deadline <= now:
                about_s = self.waiting(waiter).about_s
                model = waiter.wanted.targets[0].model
                self._fail(waiter, self._busy(f"no worker for {model} was free in time", about_s))

    def _place(self, now: float) -> None:
        """Line by line, in the order of who is first in each, until all wait."""
        held: frozenset[WorkerKey] = frozenset()
        lines = [(line.waiters[0].place, line) for line in self._queue.lines()]  # sorted, so a heap
        while lines:
            _, line = heapq.heappop(lines)
            wait = self._first_of(line, now, held)
            if wait is not None:
                line.wait = wait
                held |= wait.gives_way
            elif line.waiters:
                heapq.heappush(lines, (line.waiters[0].place, line))

    def _first_of(self, line: Line, now: float, held: frozenset[WorkerKey]) -> Wait | None:
        """Place or refuse the line's first, or begin what it needs; a Wait where nothing can be done but that."""
        waiter = line.waiters[0]
        situation = Situation(
            nodes=self._fleet.nodes,
            starting=self._loads.under_way(now),
            failed=self._loads.failed,
            passing=self._loads.passing,
            made=self._loads.made,
            rivals=self._watch.rivals,
            held=held,
            seen=self._watch.seen(now),
        )
        waiting, waited_s = self._queue.waiting_for(line.model), now - waiter.entered_at
        match decide(situation, waiter.wanted, waiting=waiting, waited_s=waited_s):
            case Send(worker):
                self._send(waiter, worker, now)
            case Start(node, target):
                return None if self._loads.begin(node, target, now) else Wait()
            case Refuse(error):
                self._fail(waiter, _again(error))
            case Wait() as wait:
                return wait
        return None

    def _send(self, waiter: Waiter, worker: WorkerView, now: float) -> None:
        self._count(self._fleet.begun, worker.key)
        self._queue.remove(waiter)
        self._watch.used(worker.key, now)
        self._tickets[waiter].placed.set_result(worker)

    def _fail(self, waiter: Waiter, error: Exception) -> None:
        self._queue.remove(waiter)
        placed = self._tickets[waiter].placed
        placed.set_exception(error)
        placed.exception()  # whoever left does not hear of it

    # --- small things ------------------------------------------------------------------------------------------------

    def _now(self) -> float:
        """The loop's clock is `time.monotonic`."""
        return asyncio.get_running_loop().time()

    def _wake(self) -> None:
        self._woken.set()

    def _about_s(self, wanted: Wanted) -> float:
        """For one that would come now."""
        last = Waiter(wanted, math.inf, next(self._numbers))
        line = self._queue.line_of(last)
        wait = line.wait if line else Wait()
        return wait.about_s + self._queue.ahead_of(last) * wait.each_s

    def _busy(self, message: str, about_s: float) -> NodeError:
        retry_after_s = max(LEAST_RETRY_S, min(math.ceil(about_s), MOST_RETRY_S))
        return NodeError(
            ErrorCode.ALL_SLOTS_BUSY,
            message,
            hint=f"try again in {retry_after_s} s",
            details={"retry_after_s": retry_after_s},
        )

    def _ending(self) -> RbeeError:
        return self._busy("the gateway is ending", 0.0)


def _again(error: RbeeError) -> RbeeError:
    """Another one that says the same: each time that one is raised it grows by a traceback."""
    copy = error.__class__.__new__(error.__class__)
    RbeeError.__init__(copy, error.code, error.message, hint=error.hint, details=error.details)
    return copy
