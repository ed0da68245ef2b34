"""Errors as HTTP answers: the status of each code, and what starlette calls for what a route raises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.system.sanitize import redact

Statuses = Mapping[ErrorCode, int]

#: What has no status here is 500.
WORKER: Statuses = {
    ErrorCode.USAGE: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.REQUEST_GONE: 404,
    ErrorCode.WORKER_GONE: 410,
    ErrorCode.MODEL_INVALID: 422,
    ErrorCode.ALL_SLOTS_BUSY: 503,
    ErrorCode.IN_USE: 503,
    ErrorCode.DEADLINE_EXCEEDED: 504,
}
HIVE: Statuses = {
    **WORKER,
    ErrorCode.NODE_BUSY: 409,
    ErrorCode.IN_USE: 409,
    ErrorCode.BACKEND_UNAVAILABLE: 422,
    ErrorCode.DOWNLOAD_FAILED: 502,
    ErrorCode.RAM_EXHAUSTED: 507,
    ErrorCode.VRAM_EXHAUSTED: 507,
    ErrorCode.DISK_FULL: 507,
}
#: OpenAI's clients try 408, 409, 429 and 5xx again, so a refusal that cannot succeed later must be none of these.
OPENAI: Statuses = {**WORKER, ErrorCode.REQUEST_CANCELED: 499, ErrorCode.WORKER_GONE: 503}


def status_of(error: RemoteError, statuses: Statuses) -> int:
    return statuses.get(error.code, 500)


def headers_of(error: RemoteError, status: int) -> dict[str, str]:
    """When to come again, where that can help."""
    return {"Retry-After": str(error.details.get("retry_after_s", 1))} if status == 503 else {}


def shown(error: RemoteError) -> RemoteError:
    """As clients see it: a model can be an address whose query is a signature."""
    return RemoteError(error.code, redact(error.message), hint=error.hint, details=error.details)


def response(error: RemoteError, status: int) -> JSONResponse:
    return JSONResponse(shown(error).encode(), status_code=status, headers=headers_of(error, status))


def handlers(who: str, statuses: Statuses, *, hint: str) -> dict[Any, Any]:
    """For starlette. who: answers, "hive" or "worker". hint: where to look when it is our own mistake."""

    async def on_remote_error(_: Request, error: RemoteError) -> Response:
        return response(error, status_of(error, statuses))

    async def on_http_error(_: Request, error: HTTPException) -> Response:
        unknown = error.status_code in (404, 405)
        told = f"the {who} has no such request: {error.detail}" if unknown else error.detail
        answer = response(RemoteError(ErrorCode.USAGE, told), error.status_code)
        answer.headers.update(error.headers or {})
        return answer

    async def on_bug(_: Request, error: Exception) -> Response:
        """Starlette raises it again once this is sent, so that the log has the traceback."""
        return response(RemoteError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}", hint=hint), 500)

    return {RemoteError: on_remote_error, HTTPException: on_http_error, Exception: on_bug}
