"""The worker's HTTP API: routes of a `Service`, on a unix socket.

    GET    /v1/health               WorkerStatus
    GET    /v1/ready                200 when a request would be computed, 503 before
    GET    /v1/loading/progress     SSE `progress` events with WorkerStatus until the load is over
    POST   /v1/inference            GenerateRequest -> SSE `started`, `token`…, `done` or `error`, ids from 1
                                    (a request that came before is not computed twice: its events come again)
    GET    /v1/requests/ID/events   the same events, those after `Last-Event-ID` (or ?after=N); 404 REQUEST_GONE
    DELETE /v1/requests/ID          cancels: 202, or 404
    GET    /metrics                 what the worker has done, for Prometheus
    POST   /v1/admin/shutdown       StopRequest or nothing -> 202, or 503 where its only_idle_s does not hold
    POST   /v1/admin/lease          LeaseRequest -> 202; 410 WORKER_GONE
    POST   /v1/admin/bench          BenchRequest -> SSE `progress`…, `done` or `error`

Errors are RemoteError.encode() with a status of 4xx or 5xx, or the `error` event once a stream has begun. `openai` adds
OpenAI's API to these, with errors in its form.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from collections.abc import AsyncIterator
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
    LeaseRequest,
    ProtocolError,
    RemoteError,
    StopRequest,
    WorkerState,
    decode,
    encode,
)
from rbee_remote.serving.json_body import read_json
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.worker.http.bench import bench_endpoint
from rbee_remote.worker.http.openai.routes import openai_routes
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.service.service import Service

#: Seconds between two SSE comments while nothing else is to say.
HEARTBEAT_S = 3.0

_STATUS: dict[ErrorCode, int] = {
    ErrorCode.USAGE: 400,
    ErrorCode.REQUEST_GONE: 404,
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
        caller = caller_of(request.headers)
        await service.submit(message, caller)
        return _Events(service, caller, message.request_id)

    async def events(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        known = service.journals.find(request_id).last_id
        return _Events(service, caller_of(request.headers), request_id, after=_last_event_id(request, known))

    async def cancel(request: Request) -> Response:
        request_id = request.path_params["request_id"]
        if service.cancel(request_id):
            return JSONResponse({}, status_code=202)
        raise RemoteError(ErrorCode.REQUEST_GONE, f"no request {request_id} is open")

    async def metrics(request: Request) -> Response:
        await asyncio.to_thread(importlib.import_module, "prometheus_client")  # the first time it takes 40 ms
        accept = request.headers.get("Accept", "")
        content, media_type = service.metrics.render(service.config, service.status(), accept)
        return Response(content, media_type=media_type)

    async def shutdown(request: Request) -> Response:
        message = await _read(request, StopRequest, default=StopRequest())
        if message.only_idle_s is None:
            service.stop(drain=message.drain)
        else:
            service.stop_if_idle(message.only_idle_s, caller_of(request.headers))
        return JSONResponse({}, status_code=202)

    async def lease(request: Request) -> Response:
        message = await _read(request, LeaseRequest)
        service.grant(message.keeper, message.keep_alive_s)
        return JSONResponse({}, status_code=202)

    app = Starlette(
        routes=[
            Route("/v1/health", health),
            Route("/v1/ready", ready),
            Route("/v1/loading/progress", loading_progress),
            Route("/v1/inference", inference, methods=["POST"]),
            Route("/v1/requests/{request_id}/events", events),
            Route("/v1/requests/{request_id}", cancel, methods=["DELETE"]),
            Route("/v1/admin/shutdown", shutdown, methods=["POST"]),
            Route("/v1/admin/lease", lease, methods=["POST"]),
            Route("/v1/admin/bench", bench_endpoint(service), methods=["POST"]),
            Route("/metrics", metrics),
            *openai_routes(service),
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


class _Events(StreamingResponse):
    """The events of a request as SSE, those with a number above `after`. While it is open, the request has a reader,
    and who reads uses the worker."""

    def __init__(self, service: Service, caller: Caller, request_id: str, after: int = 0) -> None:
        lines = _lines(service.journals.find(request_id), after)
        super().__init__(lines, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._service = service
        self._keeper = caller.keeper
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        with service.keep_alive.leased(self._keeper), service.journals.following(self._request_id):
            await super().__call__(scope, receive, send)


async def _lines(journal: Journal, after: int) -> AsyncIterator[str]:
    async for record in journal.follow(HEARTBEAT_S, after):
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


def _last_event_id(request: Request, known: int) -> int:
    """How many events the client has already. known: how many there are. Raises RemoteError USAGE."""
    said = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
    if not re.fullmatch(r"[0-9]{1,9}", said) or int(said) > known:
        raise RemoteError(ErrorCode.USAGE, f"Last-Event-ID must be a number from 0 to {known}, got {said!r:.20}")
    return int(said)


async def _read(request: Request, cls: type[T], default: T | None = None) -> T:
    """The body as a message. default: for an empty body. Raises RemoteError USAGE."""
    body = await read_json(request, may_be_empty=default is not None)
    if body is None and default is not None:
        return default
    try:
        return decode(cls, body)
    except ProtocolError as error:
        raise RemoteError(ErrorCode.USAGE, str(error)) from error


def _error(error: RemoteError, status: int) -> JSONResponse:
    headers = {"Retry-After": str(error.details.get("retry_after_s", 1))} if status == 503 else {}
    return JSONResponse(error.encode(), status_code=status, headers=headers)


async def _on_remote_error(_: Request, error: Any) -> Response:
    return _error(error, _STATUS.get(error.code, 500))


async def _on_http_error(_: Request, error: Any) -> Response:
    response = _error(RemoteError(ErrorCode.USAGE, str(error.detail)), error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _on_bug(_: Request, error: Exception) -> Response:
    """Starlette raises it again once this is sent, so that the log has the traceback."""
    return _error(RemoteError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}", hint="see the worker's log"), 500)
