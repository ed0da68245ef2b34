"""The worker's HTTP API: routes of a `Service`, on a unix socket.

    GET    /v1/health               WorkerStatus
    GET    /v1/ready                200 when a request would be computed, 503 before
    GET    /v1/loading/progress     SSE `progress` events with WorkerStatus until the load is over
    POST   /v1/inference            GenerateRequest -> SSE `started`, `token`…, `done` or `error`, ids from 1
    DELETE /v1/requests/ID          cancels: 202, or 404
    POST   /v1/admin/shutdown       StopRequest or nothing -> 202

Errors are RemoteError.encode() with a status of 4xx or 5xx, or the `error` event once a stream has begun.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee_remote.protocol import (
    HEADER_WORKER,
    ErrorCode,
    GenerateRequest,
    ProtocolError,
    RemoteError,
    StopRequest,
    WorkerState,
    decode,
    encode,
)
from rbee_remote.worker.journal import Journal
from rbee_remote.worker.service import Service

#: Bytes of a request's body at most: a context of a million tokens is about half of it.
MAX_BODY = 8 * 2**20

#: Seconds between two SSE comments while nothing else is to say.
HEARTBEAT_S = 3.0

_STATUS: dict[ErrorCode, int] = {
    ErrorCode.USAGE: 400,
    ErrorCode.WORKER_GONE: 410,
    ErrorCode.MODEL_INVALID: 422,
    ErrorCode.ALL_SLOTS_BUSY: 503,
}

T = TypeVar("T")


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of a worker."""

    async def health(_: Request) -> Response:
        return JSONResponse(encode(service.status()))

    async def ready(_: Request) -> Response:
        state = service.status().state
        serving = state in (WorkerState.IDLE, WorkerState.READY, WorkerState.BUSY)
        return JSONResponse({"state": state.value}, status_code=200 if serving else 503)

    async def loading_progress(_: Request) -> Response:
        return _sse(_progress(service))

    async def inference(request: Request) -> Response:
        message = await _read(request, GenerateRequest)
        journal = await service.submit(message)
        return _Followed(journal, lambda: service.dropped(message.request_id))

    async def cancel(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        if service.cancel(request_id):
            return JSONResponse({}, status_code=202)
        return _error(RemoteError(ErrorCode.USAGE, "no such request is open"), 404)

    async def shutdown(request: Request) -> Response:
        message = await _read(request, StopRequest, default=StopRequest())
        service.stop(drain=message.drain)
        return JSONResponse({}, status_code=202)

    app = Starlette(
        routes=[
            Route("/v1/health", health),
            Route("/v1/ready", ready),
            Route("/v1/loading/progress", loading_progress),
            Route("/v1/inference", inference, methods=["POST"]),
            Route("/v1/requests/{request_id}", cancel, methods=["DELETE"]),
            Route("/v1/admin/shutdown", shutdown, methods=["POST"]),
        ],
        exception_handlers={RemoteError: _on_remote_error, HTTPException: _on_http_error, Exception: _on_bug},
    )
    return _Addressed(app, service.config.id)


class _Addressed:
    """Lets only requests in that mean this worker: a socket's path can outlive the worker that a cache knew there."""

    def __init__(self, app: ASGIApp, worker_id: str) -> None:
        self._app = app
        self._worker_id = worker_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            meant = Request(scope).headers.get(HEADER_WORKER, self._worker_id)
            if meant != self._worker_id:
                app = _error(RemoteError(ErrorCode.WORKER_GONE, "another worker has this socket now"), 410)
        await app(scope, receive, send)


class _Followed(StreamingResponse):
    """A journal as SSE. on_over: called when the response is over, by its end or because the client went away."""

    def __init__(self, journal: Journal, on_over: Callable[[], None]) -> None:
        super().__init__(_lines(journal), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._on_over = on_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_over()


async def _lines(journal: Journal) -> AsyncIterator[str]:
    async for record in journal.follow(HEARTBEAT_S):
        if record is None:
            yield ": waiting\n\n"
        else:
            yield f"event: {record.event}\nid: {record.id}\ndata: {json.dumps(record.data)}\n\n"


async def _progress(service: Service) -> AsyncIterator[str]:
    while True:
        status = service.status()
        yield f"event: progress\ndata: {json.dumps(encode(status))}\n\n"
        if status.state not in (WorkerState.STARTING, WorkerState.LOADING):
            return
        while not await service.changed.wait(HEARTBEAT_S):
            yield ": waiting\n\n"


def _sse(lines: AsyncIterator[str]) -> Response:
    return StreamingResponse(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _read(request: Request, cls: type[T], default: T | None = None) -> T:
    """The body as a message. default: for an empty body. Raises RemoteError USAGE."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the request is larger than {MAX_BODY} bytes")
    if not body and default is not None:
        return default
    try:
        return decode(cls, json.loads(body))
    except ProtocolError as error:
        raise RemoteError(ErrorCode.USAGE, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RemoteError(ErrorCode.USAGE, f"the body is not JSON: {error}") from error


def _error(error: RemoteError, status: int) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse(error.encode(), status_code=status, headers=headers)


async def _on_remote_error(_: Request, error: Any) -> Response:
    return _error(error, _STATUS.get(error.code, 500))


async def _on_http_error(_: Request, error: Any) -> Response:
    return _error(RemoteError(ErrorCode.USAGE, str(error.detail)), error.status_code)


async def _on_bug(_: Request, error: Exception) -> Response:
    """Starlette raises it again once this is sent, so that the log has the traceback."""
    return _error(RemoteError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}", hint="see the worker's log"), 500)
