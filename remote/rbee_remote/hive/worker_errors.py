"""Why a worker is of no more use, in the words that those who wait for it read."""

from __future__ import annotations

from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system.child import describe_exit
from rbee_remote.system.logs import last_lines

_CRASH_LOG_LINES = 10


def crashed(worker: WorkerRecord, status: int) -> RemoteError:
    """status: of the process's exit, as `describe_exit` takes it."""
    lines = last_lines(worker.log, _CRASH_LOG_LINES).decode("utf-8", "replace").splitlines()
    return RemoteError(
        ErrorCode.WORKER_CRASHED,
        f"the worker for {worker.key.model} ended unexpectedly",
        hint="rbee logs NODE --worker ID shows more; a smaller context needs less memory",
        details={**describe_exit(status), "log": str(worker.log), "last_lines": lines},
    )


def stopped(worker: WorkerRecord, seconds: float) -> RemoteError:
    return RemoteError(
        ErrorCode.WORKER_CRASHED,
        f"the worker for {worker.key.model} was stopped (SIGSTOP) and not continued for {seconds:.0f} s",
        hint="somebody on the node sent the signal; the next command starts another worker",
        details={"log": str(worker.log)},
    )


def silent(worker: WorkerRecord) -> RemoteError:
    return RemoteError(
        ErrorCode.WORKER_CRASHED,
        f"the worker for {worker.key.model} runs but does not answer any more",
        hint="rbee logs NODE --worker ID shows more; the next command starts another worker",
        details={"log": str(worker.log)},
    )


def stalled(worker: WorkerRecord, seconds: float) -> RemoteError:
    return RemoteError(
        ErrorCode.LOADING_TIMEOUT,
        f"loading {worker.key.model} made no progress for {seconds:.0f} s",
        hint="look at the worker's log; a slow or full disk is the usual reason",
        details={"progress_percent": round(worker.progress * 100), "log": str(worker.log)},
    )


def unwanted(worker: WorkerRecord) -> RemoteError:
    return RemoteError(
        ErrorCode.DEADLINE_EXCEEDED,
        f"{worker.key.model} was not loaded before the deadline of everybody who asked for it",
        hint="allow more time with `--timeout`",
        details={"progress_percent": round(worker.progress * 100)},
    )
