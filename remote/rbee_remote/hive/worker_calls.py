"""What the hive asks of a worker, over its socket."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import anyio.to_thread

from rbee_remote.hive.record import WorkerRecord
from rbee_remote.protocol import (
    HEADER_KEEPER,
    HEADER_WHO,
    ErrorCode,
    LeaseRequest,
    RemoteError,
    StopRequest,
    encode,
)
from rbee_remote.system import unix_http
from rbee_remote.system.caller import Caller

_log = logging.getLogger(__name__)

#: Seconds that a worker has to say that it is there, and to take note of a keeper that is about to come.
HEALTH_TIMEOUT_S = 10.0
LEASE_TIMEOUT_S = 5.0

#: The HTTP status of a worker that takes nobody in any more.
GONE = 410


async def check_health(worker: WorkerRecord) -> None:
    """Raises OSError or ValueError where it does not answer."""
    await _request(worker, "GET", "/v1/health", None, HEALTH_TIMEOUT_S)


async def grant(worker: WorkerRecord, request: LeaseRequest) -> bool:
    """Have the worker stay for a keeper. False: it is ending, or gone. True for one that is silent: nobody knows."""
    try:
        status, _ = await _request(worker, "POST", "/v1/admin/lease", encode(request), LEASE_TIMEOUT_S)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    except (OSError, ValueError) as error:
        _log.warning("worker %s does not take note of keeper %s: %s", worker.id, request.keeper, error)
        worker.suspect()
        return True
    return status != GONE


async def ask_to_shut_down(worker: WorkerRecord, request: StopRequest) -> bool:
    """Whether the worker has taken the request to end by itself."""
    plain = replace(request, only_idle_s=None, follower="")
    try:
        status, _ = await _request(worker, "POST", "/v1/admin/shutdown", encode(plain), request.patience_s)
    except (OSError, ValueError) as error:
        _log.info("worker %s cannot be asked to end: %s", worker.id, error)
        return False
    return status < 400


async def ask_to_end_if_idle(worker: WorkerRecord, request: StopRequest, caller: Caller) -> None:
    """Returns once the worker takes nobody in any more, or is gone.

    Raises RemoteError IN_USE when it is in use, or does not say.
    """
    headers = {HEADER_KEEPER: caller.keeper, HEADER_WHO: quote(caller.who)}
    body, patience = encode(request), request.patience_s
    try:
        status, answer = await _request(worker, "POST", "/v1/admin/shutdown", body, patience, headers)
    except (FileNotFoundError, ConnectionRefusedError):
        if worker.gone.is_set():
            return
        raise in_use(worker, "its socket is gone, and whether it is at work is not known") from None
    except (OSError, ValueError) as error:
        worker.suspect()
        raise in_use(worker, "it does not answer, and whether it is at work is not known") from error
    if status >= 400:
        raise RemoteError.decode(answer)


def in_use(worker: WorkerRecord, reason: str) -> RemoteError:
    """reason: why it is not ended, a clause."""
    message = f"worker {worker.id} is not ended: {reason}"
    return RemoteError(ErrorCode.IN_USE, message, details={"reason": reason})


async def _request(
    worker: WorkerRecord,
    method: str,
    target: str,
    body: object,
    timeout: float,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    def blocking() -> tuple[int, Any]:
        return unix_http.request(worker.socket, method, target, body=body, timeout=timeout, headers=headers)

    return await anyio.to_thread.run_sync(blocking, abandon_on_cancel=True)
