"""Looking after workers from outside: are they alive, do they get on with loading, how large are they.

What is found is reported to the supervisor, which alone changes its table.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import psutil

from rbee_remote.hive import logs, unix_http
from rbee_remote.hive.resources import MB
from rbee_remote.hive.worker_record import COMING, SERVING, WorkerRecord
from rbee_remote.protocol import ErrorCode, RemoteError, StopRequest, encode

if TYPE_CHECKING:
    from rbee_remote.hive.supervisor import Supervisor

_log = logging.getLogger(__name__)

#: Health checks in a row without an answer until a worker counts as hung. Each waits 10 s.
MISSED_CHECKS = 3
_CHECK_TIMEOUT_S = 10.0


async def watch(supervisor: Supervisor) -> None:
    """Runs until cancelled: every tick the loads and the failures, less often health, memory and log sizes."""
    checked_at = time.monotonic()
    while True:
        await anyio.sleep(supervisor.timing.tick)
        now = time.monotonic()
        supervisor.forget_failed(now)
        for worker in supervisor.live():
            measure(worker)
            _check_progress(supervisor, worker, now)
            _check_wanted(supervisor, worker, now)
        if now - checked_at >= supervisor.timing.check:
            checked_at = now
            async with anyio.create_task_group() as checks:
                for worker in supervisor.live():
                    checks.start_soon(_check_health, supervisor, worker)


def measure(worker: WorkerRecord) -> None:
    """Take down the worker's resident memory, and how much of it is its own rather than mapped files."""
    if worker.child is None or not worker.child.running:
        return
    try:
        memory = psutil.Process(worker.child.identity.pid).memory_info()
    except psutil.Error:
        return  # it is ending: the supervisor will hear of that from the process itself
    worker.rss_mb = memory.rss // MB
    worker.anonymous_mb = (memory.rss - getattr(memory, "shared", 0)) // MB


def _check_progress(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    if worker.state not in COMING or worker.error is not None or now - worker.progress_at < supervisor.timing.stall:
        return
    error = RemoteError(
        ErrorCode.LOADING_TIMEOUT,
        f"loading {worker.key.model} made no progress for {supervisor.timing.stall:.0f} s",
        hint="look at the worker's log; a slow or full disk is the usual reason",
        details={"progress_percent": round(worker.progress * 100), "log": str(worker.log)},
    )
    supervisor.fail(worker, error)


def _check_wanted(supervisor: Supervisor, worker: WorkerRecord, now: float) -> None:
    """Keepers that die do not say so, but their deadlines pass."""
    if worker.state not in COMING or worker.error is not None or now < worker.wanted_until:
        return
    error = RemoteError(
        ErrorCode.DEADLINE_EXCEEDED,
        f"{worker.key.model} was not loaded before the deadline of everybody who asked for it",
        hint="give it more with `--timeout`",
        details={"progress_percent": round(worker.progress * 100)},
    )
    supervisor.fail(worker, error)


async def _check_health(supervisor: Supervisor, worker: WorkerRecord) -> None:
    logs.rotate(worker.log)
    if worker.state not in SERVING:
        return
    try:
        await _request(worker, "GET", "/v1/health", None, _CHECK_TIMEOUT_S)
        worker.missed_checks = 0
    except (OSError, ValueError) as error:
        worker.missed_checks += 1
        _log.warning("worker %s does not answer (%d): %s", worker.id, worker.missed_checks, error)
    if worker.missed_checks == MISSED_CHECKS and worker.state in SERVING:
        message = f"the worker for {worker.key.model} runs but does not answer any more"
        details = {"log": str(worker.log)}
        supervisor.fail(worker, RemoteError(ErrorCode.WORKER_CRASHED, message, details=details))


async def ask_to_shut_down(worker: WorkerRecord, request: StopRequest) -> bool:
    """Whether the worker has taken the request to end by itself."""
    try:
        status, _ = await _request(worker, "POST", "/v1/admin/shutdown", encode(request), request.patience_s)
    except (OSError, ValueError) as error:
        _log.info("worker %s cannot be asked to end: %s", worker.id, error)
        return False
    return status < 400


async def drained(worker: WorkerRecord) -> None:
    """Returns when the worker runs no request any more, or is gone."""
    while not worker.gone.is_set() and worker.slots_free < worker.slots:
        await worker.changed.wait()


async def _request(worker: WorkerRecord, method: str, target: str, body: object, timeout: float) -> tuple[int, object]:
    def blocking() -> tuple[int, object]:
        return unix_http.request(worker.socket, method, target, body=body, timeout=timeout)

    return await anyio.to_thread.run_sync(blocking, abandon_on_cancel=True)
