"""The worker's HTTP API: routes of a `Service`, on a unix socket.

    GET    /v1/health               WorkerStatus
    GET    /v1/ready                200 when a request would be computed, 503 before
    GET    /v1/loading/progress     SSE `progress` events with WorkerStatus until the load is over
    GET    /v1/news                 SSE `news` events with WorkerNews, at once and at each change, until the worker ends
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
import re
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rbee_remote.protocol import (
    HEADER_WORKER,
    ErrorCode,
    GenerateRequest,
    LeaseRequest,
    RemoteError,
    StopRequest,
    WorkerState,
    encode,
)
from rbee_remote.serving import errors, sse
from rbee_remote.serving.body import read_message
from rbee_remote.serving.digests import digests_of
from rbee_remote.system.caller import Caller, caller_of
from rbee_remote.worker.http.answers.guard import Respond
from rbee_remote.worker.http.anthropic import errors as anthropic_errors
from rbee_remote.worker.http.anthropic.routes import anthropic_routes
from rbee_remote.worker.http.bench import bench_endpoint
from rbee_remote.worker.http.llama_server.routes import llama_server_routes
from rbee_remote.worker.http.openai import errors as openai_errors
from rbee_remote.worker.http.openai.routes import openai_routes, unknown_endpoint
from rbee_remote.worker.http.responses.routes import responses_routes
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.service.service import Service


def make_app(service: Service) -> ASGIApp:
    """The ASGI application of a worker."""

    async def health(_: Request) -> Response:
        return JSONResponse(encode(service.state.status()))

    async def ready(_: Request) -> Response:
        state = service.state.status().state
        return JSONResponse({"state": state.value}, status_code=200 if service.state.is_ready else 503)

    async def loading_progress(_: Request) -> Response:
        return sse.EventStream(_progress(service))

    async def news(_: Request) -> Response:
        return sse.EventStream(_news(service))

    async def inference(request: Request) -> Response:
        message = await read_message(request, GenerateRequest)
        caller = caller_of(request.headers)
        await service.submit(message, caller, digests=await digests_of(request, encode(message)))
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
        content, media_type = service.metrics.render(service.config, service.state.status(), accept)
        return Response(content, media_type=media_type)

    async def shutdown(request: Request) -> Response:
        message = await read_message(request, StopRequest, default=StopRequest())
        if message.only_idle_s is None:
            service.stop(drain=message.drain)
        else:
            service.stop_if_idle(message.only_idle_s, caller_of(request.headers))
        return JSONResponse({}, status_code=202)

    async def lease(request: Request) -> Response:
        message = await read_message(request, LeaseRequest)
        service.grant(message.keeper, message.keep_alive_s)
        return JSONResponse({}, status_code=202)

    routes = [
        Route("/v1/health", health),
        Route("/v1/ready", ready),
        Route("/v1/loading/progress", loading_progress),
        Route("/v1/news", news),
        Route("/v1/inference", inference, methods=["POST"]),
        Route("/v1/requests/{request_id}/events", events),
        Route("/v1/requests/{request_id}", cancel, methods=["DELETE"]),
        Route("/v1/admin/shutdown", shutdown, methods=["POST"]),
        Route("/v1/admin/lease", lease, methods=["POST"]),
        Route("/v1/admin/bench", bench_endpoint(service), methods=["POST"]),
        Route("/metrics", metrics),
        *openai_routes(service),
        *responses_routes(service),
        *anthropic_routes(service),
        *llama_server_routes(service),
    ]
    handlers = errors.handlers("worker", errors.WORKER, hint="see the worker's log")
    unknown = unknown_endpoint(routes, _form_of)
    app = Starlette(routes=routes, exception_handlers={**handlers, 404: unknown, 405: unknown})
    app.router.redirect_slashes = False  # to where? the client's address is the gateway's, or a tunnel's
    return _Addressed(app, service.config.id)


def _form_of(path: str) -> Respond:
    """How errors are told to who asks for a path."""
    words = path.removeprefix("/v1").split("/")
    return anthropic_errors.response if words[1:2] == ["messages"] else openai_errors.response


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
                app = errors.response(RemoteError(ErrorCode.WORKER_GONE, "another worker has this socket now"), 410)
        await app(scope, receive, send)


class _Events(sse.EventStream):
    """The events of a request as SSE, those with a number above `after`. While it is open, the request has a reader,
    and who reads uses the worker."""

    def __init__(self, service: Service, caller: Caller, request_id: str, after: int = 0) -> None:
        super().__init__(_lines(service.journals.find(request_id), after))
        self._service = service
        self._keeper = caller.keeper
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._service
        with service.keep_alive.leased(self._keeper), service.journals.following(self._request_id):
            await super().__call__(scope, receive, send)


async def _lines(journal: Journal, after: int) -> AsyncIterator[str]:
    async for record in journal.follow(sse.HEARTBEAT_S, after):
        yield sse.WAITING if record is None else sse.event(record.event, record.data, record.id)


async def _progress(service: Service) -> AsyncIterator[str]:
    while True:
        status, seen = service.state.status(), service.state.changed.count
        yield sse.event("progress", encode(status))
        if status.state not in (WorkerState.STARTING, WorkerState.LOADING):
            return
        while not await service.state.changed.wait(sse.HEARTBEAT_S, seen=seen):
            yield sse.WAITING


async def _news(service: Service) -> AsyncIterator[str]:
    async for news in service.news.follow(sse.HEARTBEAT_S):
        if news is None:
            yield sse.WAITING
        else:  # `encode` would copy each digest
            slots = [{"slot": memory.slot, "digests": memory.digests} for memory in news.slots]
            yield sse.event("news", {"status": encode(news.status), "slots": slots, "typical_s": news.typical_s})


def _last_event_id(request: Request, known: int) -> int:
    """How many events the client has already. known: how many there are. Raises RemoteError USAGE."""
    said = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
    if not re.fullmatch(r"[0-9]{1,9}", said) or int(said) > known:
        raise RemoteError(ErrorCode.USAGE, f"Last-Event-ID must be a number from 0 to {known}, got {said!r:.20}")
    return int(said)
