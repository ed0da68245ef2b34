"""Loads that the gateway has asked nodes for: those under way, those that failed of late, and what they gave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rbee.base.errors import ConnectError, NodeError, RbeeError
from rbee.base.retries import (
    BROKEN_LOADS,
    BUSY_NODE_LONGEST_PAUSE_S,
    BUSY_NODE_PAUSE_S,
    LOAD_LONGEST_PAUSE_S,
    LOAD_PAUSE_S,
    doubled,
)
from rbee.gateway.base.interfaces import Fleet
from rbee.gateway.base.views import NodeView, Target, WorkerKey
from rbee.gateway.routing.queue import Queue
from rbee.gateway.routing.situation import Load
from rbee.gateway.routing.watching import Watch, loaded_models
from rbee_remote.protocol import ErrorCode, LoadOptions

#: Seconds for which a load goes on that nobody waits for any more: a client that times out asks again.
ABANDON_S = 15.0
#: Seconds for news of a worker that was started, which comes another way than the answer to the request for it.
SETTLE_S = 5.0
#: Failures that are remembered; the oldest goes first.
_MOST_FAILURES = 1024
#: Signals that come from outside, as details of an error have them.
_KILLS = frozenset({"SIGKILL", "SIGTERM"})

_log = logging.getLogger("rbee.gateway")


def _is_accident(error: RbeeError) -> bool:
    """Whether a load failed since the way to its node broke, or since its worker or hive was killed or ended."""
    if error.code is ErrorCode.WORKER_CRASHED:
        return error.details.get("signal") in _KILLS
    return error.code in (ErrorCode.CONNECTION_LOST, ErrorCode.WORKER_GONE)


@dataclass(slots=True)
class _Start:
    task: asyncio.Task[None]
    begun_at: float
    wanted_at: float


@dataclass(slots=True)
class _Given:
    """A worker that a node has just given; whether it was heard of since."""

    key: WorkerKey
    at: float
    is_seen: bool = False


@dataclass(slots=True)
class _Failure:
    error: RbeeError
    until: float
    in_a_row: int
    is_accident: bool

    @property
    def passes(self) -> bool:
        """Whether it is worth waiting for another try."""
        is_busy = self.error.code is ErrorCode.NODE_BUSY
        return is_busy or (self.is_accident and self.in_a_row < BROKEN_LOADS)


class Loads:
    """wake: called when one has ended, in whatever way."""

    def __init__(self, fleet: Fleet, watch: Watch, wake: Callable[[], None]) -> None:
        self._fleet = fleet
        self._watch = watch
        self._wake = wake
        self._starts: dict[Load, _Start] = {}
        self._given: dict[Load, _Given] = {}
        self._failures: dict[Load, _Failure] = {}
        self._made: set[tuple[WorkerKey, LoadOptions]] = set()
        self.failed: dict[Load, RbeeError] = {}

    @property
    def passing(self) -> frozenset[Load]:
        """Of those that failed."""
        return frozenset(load for load in self.failed if self._failures[load].passes)

    @property
    def made(self) -> frozenset[tuple[WorkerKey, LoadOptions]]:
        return frozenset(self._made)

    def under_way(self, now: float) -> dict[Load, float]:
        """With the seconds that each has taken. One whose worker was not heard of yet still is."""
        unseen = {load: now - given.at for load, given in self._given.items() if not given.is_seen}
        return unseen | {load: now - start.begun_at for load, start in self._starts.items()}

    def until_next(self, now: float) -> float | None:
        """Seconds until one may have to be given up."""
        return (
            max(0.0, min(each.wanted_at for each in self._starts.values()) + ABANDON_S - now) if self._starts else None
        )

    def begin(self, node: str, target: Target, now: float) -> bool:
        """Whether it begins: not where it is under way, nor where a worker came of it a moment ago, which then is of no
        use to who asks."""
        load = Load(node, target.model, target.load, target.ability)
        if load in self._starts or load in self._given:
            return False
        self._starts[load] = _Start(asyncio.create_task(self._start(load, target)), now, now)
        return True

    def look(self, nodes: Sequence[NodeView], queue: Queue, now: float) -> None:
        """Forget what is over: failures whose time has passed, workers that are gone, loads that nobody wants."""
        self.failed = {load: each.error for load, each in self._failures.items() if each.until > now}
        there = {worker.key for node in nodes for worker in node.workers}
        self._settle(there, now)
        there.update(given.key for given in self._given.values())
        self._made = {each for each in self._made if each[0] in there}
        targets = (target for waiter in queue for target in waiter.wanted.targets)
        wanted = {(target.model, target.load) for target in targets}
        for load, start in self._starts.items():
            if (load.model, load.options) in wanted:
                start.wanted_at = now
            elif now - start.wanted_at >= ABANDON_S:
                start.task.cancel()

    def _settle(self, there: set[WorkerKey], now: float) -> None:
        for load, given in list(self._given.items()):
            given.is_seen = given.is_seen or given.key in there
            if now - given.at >= SETTLE_S:
                del self._given[load]
                if not given.is_seen:
                    what = f"the worker for {load.model} on {load.node} was gone as soon as it had been started"
                    hint = f"`rbee logs {load.node}` may say why"
                    self._fail(load, NodeError(ErrorCode.WORKER_GONE, what, hint=hint))

    async def aclose(self) -> None:
        """Give up all that is under way."""
        tasks = [start.task for start in self._starts.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _start(self, load: Load, target: Target) -> None:
        before = self._loaded(load.node)
        try:
            key = await self._fleet.start_worker(load.node, target)
        except RbeeError as error:
            self._fail(load, error, is_accident=_is_accident(error))
        except Exception as error:
            _log.exception("loading %s on %s failed", load.model, load.node)
            message = f"loading {load.model} on {load.node} failed: {type(error).__name__}: {error}"
            self._fail(load, NodeError(ErrorCode.INTERNAL, message))
        else:
            self._failures.pop(load, None)
            self._made.add((key, load.options))
            self._given[load] = _Given(key, asyncio.get_running_loop().time())
            self._note_rivals(load, before - self._loaded(load.node))
        finally:
            del self._starts[load]
            self._wake()

    def _fail(self, load: Load, error: RbeeError, *, is_accident: bool = False) -> None:
        first_s, most_s = LOAD_PAUSE_S, LOAD_LONGEST_PAUSE_S
        if isinstance(error, ConnectError) or error.code is ErrorCode.NODE_BUSY or is_accident:
            first_s, most_s = BUSY_NODE_PAUSE_S, BUSY_NODE_LONGEST_PAUSE_S
        known = self._failures.pop(load, None)
        in_a_row = known.in_a_row + 1 if known else 1
        until = asyncio.get_running_loop().time() + doubled(first_s, most_s, in_a_row)
        self._failures[load] = _Failure(error, until, in_a_row, is_accident)
        self.failed = {**self.failed, load: error}
        if len(self._failures) > _MOST_FAILURES:
            oldest = next(iter(self._failures))
            del self._failures[oldest]
            self.failed = {load: error for load, error in self.failed.items() if load != oldest}
        if error.code is ErrorCode.NODE_BUSY:
            self._note_rivals(load, self._loaded(load.node))

    def _note_rivals(self, load: Load, others: set[str]) -> None:
        self._watch.do_not_fit(load.node, load.model, others)

    def _loaded(self, name: str) -> set[str]:
        return next((loaded_models(node) for node in self._fleet.nodes if node.name == name), set())
