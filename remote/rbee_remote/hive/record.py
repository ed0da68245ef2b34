"""A worker in the hive's table: what was asked for, what it last said of itself, and its process.

Rules
- A record's fields are written by its own methods, and its state by `_happens` alone, as the table in `states` has it.
- What others may wait for wakes them through `changed`.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio

from rbee_remote.hive.fit.needs import Need
from rbee_remote.hive.fit.resources import Placement
from rbee_remote.hive.fit.scheduler import WorkerKey, WorkerView
from rbee_remote.hive.states import COMING, SERVING, Event, next_state
from rbee_remote.protocol import (
    Lease,
    LeaseRequest,
    RemoteError,
    Work,
    WorkerInfo,
    WorkerLoad,
    WorkerState,
    WorkerStatus,
)
from rbee_remote.system.changes import Changes
from rbee_remote.system.child import Child


@dataclass(eq=False)
class WorkerRecord:
    """measured: whether `need` is llama.cpp's word. sha256, stamp: of the model's file when it was decided on, as in
    ModelInfo.

    Times named `_at` are Unix seconds where they leave the hive (created_at), else of the monotonic clock.
    """

    id: str
    key: WorkerKey
    need: Need
    placement: Placement
    measured: bool
    keep_alive_s: float
    socket: Path
    log: Path
    sha256: str = ""
    stamp: str = ""
    file_changed: bool = False
    created_at: float = field(default_factory=time.time)
    state: WorkerState = WorkerState.STARTING
    progress: float = 0.0
    slots_free: int = 0
    queued: int = 0
    work: Work = field(default_factory=Work)
    device: str = ""
    sandbox: str = ""
    rss_mb: int = 0
    anonymous_mb: int = 0
    error: RemoteError | None = None
    child: Child | None = None
    idle_since: float | None = None
    used_at: float = field(default_factory=time.monotonic)
    progress_at: float = field(default_factory=time.monotonic)
    failed_at: float | None = None
    #: The leases as they were at that time.
    leases: tuple[Lease, ...] = ()
    leases_at: float = 0.0
    #: Of keepers that asked for it before it listened.
    announced: list[LeaseRequest] = field(default_factory=list)
    #: By which keepers know it: never shown, and told to nobody but those who ask the hive.
    secret: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    #: Since when the process is stopped by a signal.
    stopped_at: float | None = None
    checked_at: float = field(default_factory=time.monotonic)
    being_checked: bool = False
    missed_checks: int = 0
    #: See `suspect`.
    suspected: bool = False
    #: It is to stop, its requests first.
    draining: bool = False
    #: The latest deadline of those who asked for it, on the monotonic clock; inf where somebody has none.
    wanted_until: float = 0.0
    #: The names of those who follow its load, and will send it their requests.
    followers: list[str] = field(default_factory=list)
    changed: Changes = field(default_factory=Changes)
    #: What it said last, but for what time and work change by themselves.
    said: tuple[object, ...] = ()
    #: Set once there is a process, or never will be one.
    has_process: anyio.Event = field(default_factory=anyio.Event)
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def ctx(self) -> int:
        assert self.key.options.ctx is not None  # a key's options are resolved
        return self.key.options.ctx

    @property
    def slots(self) -> int:
        assert self.key.options.slots is not None  # a key's options are resolved
        return self.key.options.slots

    @property
    def alive(self) -> bool:
        return self.state is not WorkerState.FAILED

    @property
    def in_use(self) -> bool:
        return self.state not in SERVING or self.slots_free < self.slots

    @property
    def is_draining(self) -> bool:
        """Whether it is to stop, and still finishes requests."""
        return self.draining and self.alive and self.slots_free < self.slots

    def is_wanted_without(self, follower: str) -> bool:
        """Whether it is of use to anybody but the follower who gives it up."""
        return self.state in SERVING or any(name != follower for name in self.followers)

    @property
    def unseen_mb(self) -> int:
        """Memory that it will need and that is not missing yet from what the system reports as available.

        The weights are mapped: their pages count as available for as long as the worker lives.
        """
        return max(0, self.need.total_mb - self.anonymous_mb)

    # --- what it is told, and what it says -------------------------------------------------------------------

    def _happens(self, event: Event) -> None:
        """Raises ImpossibleEvent."""
        self.state = next_state(self.state, event)
        self.changed.notify()

    def want(self, timeout_s: float | None) -> None:
        """Somebody asks for it who will wait that long, None for as long as it takes."""
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self.wanted_until = max(self.wanted_until, until)

    def file_is(self, stamp: str, sha256: str) -> None:
        """How the model's file is now: what the worker has loaded, or another. Whatever else was done to it, one with
        the checksum of what was loaded is that."""
        before = self.known_sha256
        if stamp == self.stamp and sha256:
            self.sha256 = sha256
        self.file_changed = stamp != self.stamp and sha256 != self.sha256
        if self.known_sha256 != before:
            self.changed.notify()

    @property
    def known_sha256(self) -> str:
        """Of what it has loaded, "" while unknown, and where that is not what lies there now."""
        return "" if self.file_changed else self.sha256

    def announce(self, lease: LeaseRequest) -> bool:
        """Keep a keeper's lease until the worker listens. True for the first one: somebody has to tell the worker."""
        self.announced.append(lease)
        return len(self.announced) == 1

    @contextmanager
    def followed(self, follower: str) -> Iterator[None]:
        """While somebody follows its load."""
        self.followers.append(follower)
        try:
            yield
        finally:
            self.followers.remove(follower)

    def start(self, child: Child) -> None:
        self.child = child
        self.has_process.set()
        self.changed.notify()

    def apply(self, status: WorkerStatus) -> None:
        """Take over what the worker said of itself. One that only has done more of what it does wakes nobody.

        Raises ImpossibleEvent, and nothing has changed.
        """
        now, event = time.monotonic(), Event.says(status.state)
        state = next_state(self.state, event)
        if status.progress > self.progress or (self.state in COMING and state is not self.state):
            self.progress_at = now
        if status.slots_free != self.slots_free or status.state is WorkerState.BUSY:
            self.used_at = now
        self.progress, self.slots_free = status.progress, status.slots_free
        self.idle_since = None if status.idle_s is None else now - status.idle_s
        if status.keep_alive_s is not None:
            self.keep_alive_s = status.keep_alive_s
        self.leases, self.leases_at = status.leases, now
        self.device = status.device or self.device
        self.sandbox = status.sandbox or self.sandbox
        if status.error is not None:
            self.error = RemoteError.decode({"error": status.error})
        self.work, self.queued = status.work, status.queued
        before, self.said = self.said, _but_for_time(status)
        if self.said != before or state is not self.state:
            self._happens(event)

    # --- its end --------------------------------------------------------------------------------------------

    def give_up(self, error: RemoteError) -> None:
        """error: why it is of no more use, for those who wait for it."""
        self.error = error

    def begin_stop(self, *, drain: bool) -> bool:
        """From now on it takes no further request of the hive. False where its end is under way: a second call can only
        make it faster. `draining` says whether its requests are let finish."""
        first, serving = self.state is not WorkerState.STOPPING, self.state in SERVING
        self._happens(Event.STOP)
        if drain and not first:
            return False
        self.draining = drain and serving
        return True

    def exited(self, status: int) -> bool:
        """Its process has ended with that exit status. Whether as planned; if not, `failed` is to follow."""
        planned = self.state is WorkerState.STOPPING or (status == 0 and self.state in SERVING)
        if not planned or self.error:
            return False
        self._happens(Event.EXIT)
        return True

    def failed(self) -> None:
        """It is over, for the reason that `give_up` was told."""
        self.failed_at = time.monotonic()
        self._happens(Event.CRASH)

    def leave(self) -> None:
        """No process of it is left, and its memory is free."""
        self.has_process.set()
        self.gone.set()
        self.changed.notify()

    async def drained(self) -> None:
        """Returns when it runs no request any more, or is gone."""
        while not self.gone.is_set() and self.slots_free < self.slots:
            await self.changed.wait()

    # --- what is seen of it from outside --------------------------------------------------------------------

    def observe(self, now: float, *, stopped: bool, traced: bool, rss_mb: int, anonymous_mb: int) -> None:
        """How its process is. stopped: by a signal; traced: by a debugger. now: of the monotonic clock."""
        if traced:
            self.progress_at = now
        if not stopped:
            self.stopped_at = None
        elif self.stopped_at is None:
            self.stopped_at = now
        self.rss_mb, self.anonymous_mb = rss_mb, anonymous_mb

    def begin_check(self, now: float) -> None:
        """Its health is about to be asked for, until `end_check`."""
        self.being_checked, self.checked_at = True, now

    def end_check(self) -> None:
        self.being_checked = False

    def answered(self) -> None:
        self.missed_checks, self.suspected = 0, False

    def missed_check(self) -> None:
        self.missed_checks += 1

    def suspect(self) -> None:
        """Somebody was left without an answer."""
        self.suspected = True

    def excuse(self, slept_s: float) -> None:
        """For so long nobody looked at it, so what it did not do meanwhile counts for nothing."""
        self.progress_at += slept_s
        self.stopped_at = None
        self.missed_checks = 0

    # --- as others see it -----------------------------------------------------------------------------------

    def leases_now(self) -> tuple[Lease, ...]:
        """Those that are not over."""
        passed = time.monotonic() - self.leases_at
        left = ((lease, None if lease.left_s is None else lease.left_s - passed) for lease in self.leases)
        return tuple(replace(lease, left_s=left_s) for lease, left_s in left if left_s is None or left_s > 0)

    def view(self) -> WorkerView:
        return WorkerView(
            id=self.id,
            key=self.key,
            state=self.state,
            in_use=self.in_use,
            last_used=self.used_at,
            memory=self.placement.memory,
            memory_mb=self.need.total_mb,
            gpus=self.placement.gpu_ids,
            shares=self.placement.shares,
        )

    def load(self) -> WorkerLoad:
        running = self.slots - self.slots_free if self.state in SERVING or self.is_draining else 0
        return WorkerLoad(self.id, running, self.queued, self.rss_mb, self.work)

    def info(self) -> WorkerInfo:
        identity = self.child.identity if self.child else None
        return WorkerInfo(
            id=self.id,
            model=self.key.model,
            state=self.state,
            backend=self.placement.backend,
            device=self.device or self.placement.device,
            socket=str(self.socket),
            pid=identity.pid if identity else 0,
            start_ticks=identity.start_ticks if identity else 0,
            boot_id=identity.boot_id if identity else "",
            ctx=self.ctx,
            slots=self.slots,
            slots_free=self.slots_free,
            keep_alive_s=self.keep_alive_s,
            created_at=self.created_at,
            progress=self.progress,
            rss_mb=self.rss_mb,
            idle_s=None if self.idle_since is None else time.monotonic() - self.idle_since,
            log=str(self.log),
            error=self.error.encode()["error"] if self.error else None,
            options=self.key.options,
            leases=self.leases_now(),
            secret=self.secret,
            sandbox=self.sandbox,
            sha256=self.known_sha256,
        )


def _but_for_time(status: WorkerStatus) -> tuple[object, ...]:
    """What a follower would be told anew."""
    return (
        status.state,
        status.progress,
        status.slots_free,
        status.idle_s is None,
        status.keep_alive_s,
        status.device,
        status.error,
        status.sandbox,
        [(lease.keeper, lease.left_s is None) for lease in status.leases],
        [served.request_id for served in status.served],
    )
