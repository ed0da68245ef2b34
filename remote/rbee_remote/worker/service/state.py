"""What the worker says of itself: its state, its model, who keeps it, and why it failed.

    starting -> loading -> idle <-> ready <-> busy -> stopping
                      \\-> failed

What the hive makes of that is `hive.states`. Idle, ready and busy are one state here; which it is, the slots say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rbee_remote.protocol import ErrorCode, RemoteError, Served, Work, WorkerConfig, WorkerState, WorkerStatus
from rbee_remote.protocol.abilities import refusal
from rbee_remote.system.changes import Changes
from rbee_remote.worker.engine.interface import LoadedModel
from rbee_remote.worker.service.keep_alive import KeepAlive


class State:
    """counts: of requests that have a slot, and that wait; background: of both, those that give way. work: what was
    done so far.

    report: called with each new status, loading progress about ten times a second; `changed` wakes with it.
    info: of the model, None until it is loaded. sandbox: as in WorkerStatus.
    """

    def __init__(
        self,
        config: WorkerConfig,
        counts: Callable[[], tuple[int, int]],
        keep_alive: KeepAlive,
        report: Callable[[WorkerStatus], None],
        work: Callable[[], Work] = Work,
        background: Callable[[], int] = lambda: 0,
    ) -> None:
        self.sandbox = ""
        self.changed = Changes()
        self.info: LoadedModel | None = None
        self.failure: RemoteError | None = None
        self._config = config
        self._counts = counts
        self._keep_alive = keep_alive
        self._report = report
        self._work = work
        self._background = background
        self._state = WorkerState.STARTING
        self._progress = 0.0
        self._published: tuple[object, ...] = ()

    # --- what happens to it ---------------------------------------------------------------------------------

    def begin_load(self) -> None:
        self._state = WorkerState.LOADING
        self.publish()

    def on_progress(self, share: float) -> None:
        self._progress = max(self._progress, share)
        self.publish()

    def loaded(self, info: LoadedModel) -> None:
        """One that was told to stop meanwhile is not ready any more."""
        self.info, self._progress = info, 1.0
        if self._state is WorkerState.LOADING:
            self._state = WorkerState.READY

    def stop(self) -> bool:
        """False where it stops already, or has failed."""
        if self.is_over:
            return False
        self._state = WorkerState.STOPPING
        return True

    def end(self, failure: RemoteError | None) -> None:
        self.failure = failure
        self._state = WorkerState.STOPPING if failure is None else WorkerState.FAILED

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether it serves, however many of its slots are taken."""
        return self._state is WorkerState.READY

    @property
    def is_over(self) -> bool:
        return self._state in (WorkerState.STOPPING, WorkerState.FAILED)

    @property
    def is_stopping(self) -> bool:
        return self._state is WorkerState.STOPPING

    def check_open(self) -> None:
        """Raises RemoteError WORKER_GONE, or why the load failed."""
        if self.failure:
            raise self.failure
        if self.is_stopping:
            raise RemoteError(ErrorCode.WORKER_GONE, "the worker is ending")

    async def wait_loaded(self) -> LoadedModel:
        """Raises RemoteError why there is no model."""
        while self.info is None:
            self.check_open()
            await self.changed.wait(1.0)
        self.check_open()
        return self.info

    async def wait_able(self, asked: str) -> LoadedModel:
        """The model, once it is loaded. asked: one of the words of `abilities`. Raises RemoteError USAGE where the
        model is not made for that, WORKER_GONE, or why the load failed."""
        info = await self.wait_loaded()
        self.check_able(info, asked)
        return info

    def check_able(self, info: LoadedModel, asked: str) -> None:
        """Raises RemoteError USAGE."""
        if why := refusal(self._config.model, info.able, asked):
            raise RemoteError(ErrorCode.USAGE, why, details={"field": "model", "able": list(info.able)})

    def status(self) -> WorkerStatus:
        running, waiting = self._counts()
        slots = self._config.slots
        taken = min(slots, running + waiting)
        return WorkerStatus(
            id=self._config.id,
            model=self._config.model,
            state=self._state_with(taken),
            progress=self._progress,
            ctx=self._config.ctx,
            slots=slots,
            slots_free=slots - taken,
            queued=running + waiting - taken,
            idle_s=self._keep_alive.idle_s,
            keep_alive_s=self._keep_alive.leases.keep_alive_s(),
            device=self.info.device if self.info else "",
            error=None if self.failure is None else self.failure.encode()["error"],
            leases=self._keep_alive.leases.told(),
            sandbox=self.sandbox,
            background=self._background(),
            work=self._work(),
        )

    def _state_with(self, taken: int) -> WorkerState:
        if not self.is_ready:
            return self._state
        if taken == 0:
            return WorkerState.IDLE
        return WorkerState.BUSY if taken == self._config.slots else WorkerState.READY

    # --- who is told ----------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Tell the hive and who follows, unless only time has passed."""
        status = self.status()
        news = (
            status.state,
            status.progress,
            status.slots_free,
            status.queued,
            status.background,
            status.idle_s is None,
            status.error,
            self._keep_alive.leases.changes,
        )
        if news != self._published:
            self._published = news
            self._report(status)
            self.changed.notify()

    def tell_work(self) -> None:
        """Tell the hive how far it is. Nothing has changed for who follows."""
        self._report(self.status())

    def served(self, served: Served) -> None:
        """Have the hive write down a request that is over."""
        self._report(replace(self.status(), served=(served,)))
