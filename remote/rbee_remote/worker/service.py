"""What the worker is, seen from the event loop: its state, who may come in, when it ends.

    starting -> loading -> idle <-> ready <-> busy -> stopping
                      \\-> failed

Rules
- Everything here runs on the event loop's thread.
- A request is refused before anything of it is kept, or it gets a journal that ends with `done` or `error`.
- Once stopping, nobody comes in, and the worker ends when the last open request has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError, WorkerConfig, WorkerState, WorkerStatus
from rbee_remote.worker import prompt
from rbee_remote.worker.batching import QueueFull
from rbee_remote.worker.generation import Generation
from rbee_remote.worker.interface import LoadEngine, ModelInfo
from rbee_remote.worker.journal import Journal, Signal
from rbee_remote.worker.loop import EngineThread

#: A worker that has just loaded waits at least this long for the request that it was started for, even where its
#: keep-alive is shorter: 0 means "end after the answer", not before it.
FIRST_REQUEST_S = 10.0

#: How long a running request goes on for a client whose connection dropped, before its slot is free for others.
ORPHAN_S = 60.0

_log = logging.getLogger("rbee.worker")


class Service:
    """report: called with each new status, loading progress about ten times a second. `changed` wakes with it."""

    def __init__(self, config: WorkerConfig, load: LoadEngine, report: Callable[[WorkerStatus], None]) -> None:
        self.config = config
        self.changed = Signal()
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._engine = EngineThread(config, load, self, self._loop.call_soon_threadsafe)
        self._state = WorkerState.STARTING
        self._progress = 0.0
        self._device = ""
        self._failure: RemoteError | None = None
        self._idle_since: float | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._served = False
        self._keep_alive_s = config.keep_alive_s
        self._ended = asyncio.Event()
        self._published: tuple[object, ...] = ()

    def start(self) -> None:
        self._state = WorkerState.LOADING
        self._engine.start()
        self._publish()

    async def wait_ended(self) -> RemoteError | None:
        """Returns when the engine's thread is over: the failure that ended it, None when it ended as planned."""
        await self._ended.wait()
        self._engine.join()
        return self._failure

    def status(self) -> WorkerStatus:
        running, waiting = self._engine.counts()
        slots = self.config.options.slots
        taken = min(slots, running + waiting)
        idle = None if self._idle_since is None else time.monotonic() - self._idle_since
        return WorkerStatus(
            id=self.config.id,
            model=self.config.model,
            state=self._state_with(taken),
            progress=self._progress,
            ctx=self.config.ctx,
            slots=slots,
            slots_free=slots - taken,
            queued=running + waiting - taken,
            idle_s=idle,
            keep_alive_s=self._keep_alive_s,
            device=self._device,
            error=None if self._failure is None else self._failure.encode()["error"],
        )

    async def submit(self, request: GenerateRequest) -> Journal:
        """Take a request in. Raises RemoteError: USAGE, ALL_SLOTS_BUSY, WORKER_GONE, or why the load failed."""
        prompt.check(request)
        self._check_open()
        prepared = await asyncio.to_thread(self._engine.prepare, request)
        self._check_open()
        if request.request_id in self._engine.open_requests():
            raise RemoteError(ErrorCode.USAGE, f"request_id {request.request_id} is in use")
        generation = Generation(request, Journal(), prepared)
        try:
            self._engine.submit(generation)
        except QueueFull as error:
            raise self._busy() from error
        if request.timeout_s is not None:
            timer = self._loop.call_later(request.timeout_s, self._end, request.request_id, "deadline")
            generation.journal.when_closed(timer.cancel)
        self._served = True
        if request.keep_alive_s is not None:
            self._keep_alive_s = request.keep_alive_s
        self.on_change()
        return generation.journal

    def cancel(self, request_id: str) -> bool:
        """False if no such request is open."""
        return self._end(request_id, "canceled")

    def dropped(self, request_id: str) -> None:
        """The response to a request is over, read to its end or not.

        One that runs goes on for a while: its client's connection may have dropped, and come back.
        """
        self._end(request_id, "canceled", only_waiting=True)
        if request_id in self._engine.open_requests():
            self._loop.call_later(ORPHAN_S, self._end, request_id, "canceled")

    def stop(self, *, drain: bool) -> None:
        """End the worker: after the open requests, or by cancelling them."""
        if self._state not in (WorkerState.STOPPING, WorkerState.FAILED):
            _log.info("stopping%s", ", open requests first" if drain else "")
            self._state = WorkerState.STOPPING
        if not drain:
            for key in self._engine.open_requests():
                self._engine.end(key, "canceled")
        self.on_change()

    def on_progress(self, share: float) -> None:
        self._progress = max(self._progress, share)
        self._publish()

    def on_loaded(self, info: ModelInfo) -> None:
        _log.info("loaded on %s (%s)", info.device, info.backend)
        self._progress = 1.0
        self._device = info.device
        if self._state is WorkerState.LOADING:
            self._state = WorkerState.READY
        self.on_change()

    def on_change(self) -> None:
        running, waiting = self._engine.counts()
        busy = bool(running or waiting)
        if self._state is WorkerState.STOPPING and not busy:
            self._engine.stop()
        if busy or self._state is not WorkerState.READY:
            self._idle_since = None
            if self._idle_timer:
                self._idle_timer.cancel()
                self._idle_timer = None
        elif self._idle_since is None:
            self._idle_since = time.monotonic()
            self._arm_idle_timer()
        self._publish()

    def on_end(self, failure: RemoteError | None) -> None:
        self._failure = failure
        self._state = WorkerState.STOPPING if failure is None else WorkerState.FAILED
        self.on_change()
        self._ended.set()

    def _end(self, request_id: str, reason: str, *, only_waiting: bool = False) -> bool:
        found = self._engine.end(request_id, reason, only_waiting=only_waiting)
        if found:
            self.on_change()
        return found

    def _arm_idle_timer(self) -> None:
        if self._keep_alive_s < 0:
            return
        patience = self._keep_alive_s if self._served else max(self._keep_alive_s, FIRST_REQUEST_S)
        self._idle_timer = self._loop.call_later(patience, self._idle_over)

    def _idle_over(self) -> None:
        _log.info("idle for its keep-alive of %g s", self._keep_alive_s)
        self.stop(drain=True)

    def _state_with(self, taken: int) -> WorkerState:
        if self._state is not WorkerState.READY:
            return self._state
        if taken == 0:
            return WorkerState.IDLE
        return WorkerState.BUSY if taken == self.config.options.slots else WorkerState.READY

    def _check_open(self) -> None:
        if self._failure:
            raise self._failure
        if self._state is WorkerState.STOPPING:
            raise RemoteError(ErrorCode.WORKER_GONE, "the worker is ending")

    def _busy(self) -> RemoteError:
        running, waiting = self._engine.counts()
        return RemoteError(
            ErrorCode.ALL_SLOTS_BUSY,
            f"all slots of the worker are busy: {running} running, {waiting} waiting",
            hint="try again in a while, or load the model with more --slots or on another node",
            details={"slots": self.config.options.slots, "running": running, "waiting": waiting},
        )

    def _publish(self) -> None:
        """Tell the hive and who follows, unless only time has passed."""
        status = self.status()
        news = (status.state, status.progress, status.slots_free, status.queued, status.keep_alive_s, status.error)
        if news != self._published:
            self._published = news
            self._report(status)
            self.changed.notify()
