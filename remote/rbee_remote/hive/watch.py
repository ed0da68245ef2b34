"""Looking after workers from outside: are they alive, do they get on with loading, how large are they.

Rules
- What is found is reported to the supervisor, which alone changes its table.
- A worker that does not answer delays nothing but its own next check.
- A process that is stopped (state T of proc(5)) is known to be: that is told soon. One that is merely silent is asked
  several times first, and more often while somebody waits for it.
- One that a debugger holds, or that waits for a disk (swapping, above all), is silent for a reason: it is let be.
- Time in which the hive itself did not run (it was stopped, its container frozen) is nobody's silence.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio
import psutil

from rbee_remote.hive import worker_calls, worker_errors
from rbee_remote.hive.fit.scheduler import MB
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import COMING, SERVING
from rbee_remote.system import logs

if TYPE_CHECKING:
    from rbee_remote.hive.supervisor import Supervisor

_log = logging.getLogger(__name__)

#: Health checks in a row without an answer until a worker counts as hung. Each waits 10 s.
MISSED_CHECKS = 3

#: Seconds between two looks, beyond a tick, from which on the hive is taken to have slept.
SLEPT_S = 3.0

_EXCUSED = (psutil.STATUS_TRACING_STOP, psutil.STATUS_DISK_SLEEP)


async def watch(supervisor: Supervisor) -> None:
    """Runs until cancelled: every tick the processes, the loads and the failures, less often health and log sizes."""
    async with anyio.create_task_group() as checks:
        looked_at = time.monotonic()
        while True:
            await anyio.sleep(supervisor.timing.tick)
            now = time.monotonic()
            _excuse_sleep(supervisor, now - looked_at - supervisor.timing.tick)
            looked_at = now
            supervisor.forget_failed(now)
            for worker in supervisor.live():
                look_at_process(worker, now)
                _check_stopped(supervisor, worker, now)
                _check_progress(supervisor, worker, now)
                _check_wanted(supervisor, worker, now)
                if _is_due(supervisor, worker, now):
                    worker.begin_check(now)
                    checks.start_soon(_check_health, supervisor, worker)


def _excuse_sleep(supervisor: Supervisor, slept_s: float) -> None:
    """slept_s: for how long the hive did not look at its workers when it should have."""
    if slept_s < SLEPT_S:
        return
    _log.warning("the hive did not run for %.0f s", slept_s)
    for worker in supervisor.live():
        worker.excuse(slept_s)


def look_at_process(worker: WorkerRecord, now: float) -> None:
    """Take down since when the process is stopped, its resident memory, and how much of that is its own rather than
    mapped files. now: of the monotonic clock."""
    if worker.child is None or not worker.child.running:
        return
    try:
        process = psutil.Process(worker.child.identity.pid)
        with process.oneshot():
            state = process.status()
            memory = process.memory_info()
    except psutil.Error:
        return  # it is ending: the supervisor will hear of that from the process itself
    stopped = state == psutil.STATUS_STOPPED
    if stopped and worker.stopped_at is None:
        _log.warning("worker %s is stopped", worker.id)
    worker.observe(
        now,
        stopped=stopped,
        traced=state == psutil.STATUS_TRACING_STOP,
        rss_mb=memory.rss // MB,
        anonymous_mb=(memory.rss - getattr(memory, "shared", 0)) // MB,
    )


def _check_stopped(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    stopped_at, most = worker.stopped_at, supervisor.timing.stopped
    if stopped_at is not None and worker.error is None and now - stopped_at >= most:
        supervisor.fail(worker, worker_errors.stopped(worker, most), kill=True)


def _check_progress(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    if worker.state in COMING and worker.error is None and now - worker.progress_at >= supervisor.timing.stall:
        supervisor.fail(worker, worker_errors.stalled(worker, supervisor.timing.stall))


def _check_wanted(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    """Keepers that die do not say so, but their deadlines pass."""
    if worker.state in COMING and worker.error is None and now >= worker.wanted_until:
        supervisor.fail(worker, worker_errors.unwanted(worker))


def _is_due(supervisor: Supervisor, worker: WorkerRecord, now: float) -> bool:
    timing = supervisor.timing
    waited_for = _serves(worker) and (worker.in_use or worker.suspected)
    interval = min(timing.check, timing.check_in_use) if waited_for else timing.check
    return not worker.being_checked and now - worker.checked_at >= interval


def _serves(worker: WorkerRecord) -> bool:
    """Also while it finishes its last requests: whoever stops it waits for that, too. Without its socket, which may
    have been cleaned away, it cannot be asked any more."""
    return worker.state in SERVING or (worker.is_draining and worker.socket.exists())


async def _check_health(supervisor: Supervisor, worker: WorkerRecord) -> None:
    try:
        logs.rotate(worker.log)
        if not _serves(worker):
            return
        try:
            await worker_calls.check_health(worker)
        except (OSError, ValueError) as error:
            if not _is_excused(worker):
                worker.missed_check()
            _log.warning("worker %s does not answer (%d): %s", worker.id, worker.missed_checks, error)
        else:
            worker.answered()
        if worker.missed_checks >= MISSED_CHECKS and _serves(worker):
            supervisor.fail(worker, worker_errors.silent(worker))
    finally:
        worker.end_check()


def _is_excused(worker: WorkerRecord) -> bool:
    try:
        return worker.child is not None and psutil.Process(worker.child.identity.pid).status() in _EXCUSED
    except psutil.Error:
        return False
