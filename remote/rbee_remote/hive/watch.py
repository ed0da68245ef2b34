"""Looking after workers from outside: are they alive, do they get on with loading, how large are they.

Rules
- What is found is reported to the supervisor, which alone changes its table.
- A worker that does not answer delays nothing but its own next check.
- A process that is stopped (state T of proc(5)) is known to be: that is told soon. One that is merely silent is asked
  several times first, and more often while somebody waits for it.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio
import psutil

from rbee_remote.hive import logs, verdicts, worker_calls
from rbee_remote.hive.resources import MB
from rbee_remote.hive.worker_record import COMING, SERVING, WorkerRecord

if TYPE_CHECKING:
    from rbee_remote.hive.supervisor import Supervisor

_log = logging.getLogger(__name__)

#: Health checks in a row without an answer until a worker counts as hung. Each waits 10 s.
MISSED_CHECKS = 3


async def watch(supervisor: Supervisor) -> None:
    """Runs until cancelled: every tick the processes, the loads and the failures, less often health and log sizes."""
    async with anyio.create_task_group() as checks:
        while True:
            await anyio.sleep(supervisor.timing.tick)
            now = time.monotonic()
            supervisor.forget_failed(now)
            for worker in supervisor.live():
                look_at_process(worker, now)
                _check_stopped(supervisor, worker, now)
                _check_progress(supervisor, worker, now)
                _check_wanted(supervisor, worker, now)
                if _is_due(supervisor, worker, now):
                    worker.being_checked, worker.checked_at = True, now
                    checks.start_soon(_check_health, supervisor, worker)


def look_at_process(worker: WorkerRecord, now: float) -> None:
    """Take down since when the process is stopped, its resident memory, and how much of that is its own rather than
    mapped files. now: of the monotonic clock."""
    if worker.child is None or not worker.child.running:
        return
    try:
        process = psutil.Process(worker.child.identity.pid)
        with process.oneshot():
            is_stopped = process.status() == psutil.STATUS_STOPPED  # by a signal, not by a debugger's trace
            memory = process.memory_info()
    except psutil.Error:
        return  # it is ending: the supervisor will hear of that from the process itself
    if not is_stopped:
        worker.stopped_at = None
    elif worker.stopped_at is None:
        worker.stopped_at = now
        _log.warning("worker %s is stopped", worker.id)
    worker.rss_mb = memory.rss // MB
    worker.anonymous_mb = (memory.rss - getattr(memory, "shared", 0)) // MB


def _check_stopped(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    stopped_at, most = worker.stopped_at, supervisor.timing.stopped
    if stopped_at is not None and worker.error is None and now - stopped_at >= most:
        supervisor.fail(worker, verdicts.stopped(worker, most), kill=True)


def _check_progress(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    if worker.state in COMING and worker.error is None and now - worker.progress_at >= supervisor.timing.stall:
        supervisor.fail(worker, verdicts.stalled(worker, supervisor.timing.stall))


def _check_wanted(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    """Keepers that die do not say so, but their deadlines pass."""
    if worker.state in COMING and worker.error is None and now >= worker.wanted_until:
        supervisor.fail(worker, verdicts.unwanted(worker))


def _is_due(supervisor: Supervisor, worker: WorkerRecord, now: float) -> bool:
    timing = supervisor.timing
    waited_for = worker.state in SERVING and (worker.in_use or worker.suspected)
    interval = min(timing.check, timing.check_in_use) if waited_for else timing.check
    return not worker.being_checked and now - worker.checked_at >= interval


async def _check_health(supervisor: Supervisor, worker: WorkerRecord) -> None:
    try:
        logs.rotate(worker.log)
        if worker.state not in SERVING:
            return
        try:
            await worker_calls.check_health(worker)
        except (OSError, ValueError) as error:
            worker.missed_checks += 1
            _log.warning("worker %s does not answer (%d): %s", worker.id, worker.missed_checks, error)
        else:
            worker.missed_checks, worker.suspected = 0, False
        if worker.missed_checks >= MISSED_CHECKS and worker.state in SERVING:
            supervisor.fail(worker, verdicts.silent(worker))
    finally:
        worker.being_checked = False
