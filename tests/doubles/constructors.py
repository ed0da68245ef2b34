"""Parts of the gateway that its process is tested with: nodes that are there at once, and an app that does little."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rbee.base.errors import ConfigError, RbeeError, RefusedError
from rbee.context import Context
from rbee.gateway.base.interfaces import Ended, Ticket, WorkerHttp
from rbee.gateway.base.views import NodeView, Target, Wanted, WorkerKey
from rbee.gateway.requests.errors import refusal_of
from rbee.gateway.serve import Surroundings


class FewNodes:
    """A fleet that says what it is told. reloads: how often it was asked to read the inventory."""

    def __init__(self, nodes: tuple[NodeView, ...] = ()) -> None:
        self.nodes = nodes
        self.version = 1
        self.reloads = 0

    def reload(self) -> None:
        self.reloads += 1

    async def wait_changed(self, seen: int) -> None:
        raise NotImplementedError

    async def start_worker(self, node: str, target: Target) -> WorkerKey:
        raise NotImplementedError

    def worker(self, key: WorkerKey) -> WorkerHttp:
        raise NotImplementedError

    def begun(self, key: WorkerKey) -> None: ...

    def ended(self, key: WorkerKey) -> None: ...

    def failed(self, key: WorkerKey) -> None: ...


class NoDispatcher:
    def enter(self, wanted: Wanted) -> Ticket:
        raise NotImplementedError


class App:
    """GET /health; /v1/models, for who has a key; /slow, a stream that ends with POST /go; /metrics."""

    def __init__(self, surroundings: Surroundings[FewNodes, NoDispatcher]) -> None:
        self.draining = False
        self._around = surroundings
        self._go_on = asyncio.Event()
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/slow", self._slow),
            Route("/go", self._go, methods=["POST"]),
            Route("/metrics", self._metrics),
        ]
        self._app = Starlette(routes=routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"}, 503 if self.draining else 200)

    async def _models(self, request: Request) -> Response:
        address = request.client.host if request.client else ""
        try:
            client = self._around.gate.admit(request.headers, address)
        except (RefusedError, ConfigError) as error:
            refusal = refusal_of(error)
            return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)
        self._around.recorder.ended(Ended("id", client, "GET", "/v1/models", 200))
        return JSONResponse({"key": client.key, "scheme": request.url.scheme, "address": client.address})

    async def _slow(self, _: Request) -> Response:
        if self.draining:
            return JSONResponse({}, 503)

        async def lines() -> AsyncIterator[bytes]:
            yield b"data: begun\n\n"
            await self._go_on.wait()
            yield b"data: done\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    async def _go(self, _: Request) -> Response:
        self._go_on.set()
        return Response(status_code=204)

    async def _metrics(self, request: Request) -> Response:
        content, media_type = self._around.render_metrics(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)


class Constructors:
    """`rbee.gateway.serve.Constructors`. log: what was begun and ended, in order."""

    def __init__(self, nodes: tuple[NodeView, ...] = ()) -> None:
        self.few_nodes = FewNodes(nodes)
        self.log: list[str] = []
        self.link_error: RbeeError | None = None

    @asynccontextmanager
    async def fleet(self, context: Context, nodes: str | None) -> AsyncIterator[FewNodes]:
        async with self._noted("fleet"):
            yield self.few_nodes

    @asynccontextmanager
    async def dispatcher(self, fleet: FewNodes) -> AsyncIterator[NoDispatcher]:
        async with self._noted("dispatcher"):
            yield NoDispatcher()

    def waiting(self, dispatcher: NoDispatcher) -> Mapping[str, int]:
        return {}

    def app(self, surroundings: Surroundings[FewNodes, NoDispatcher]) -> App:
        return App(surroundings)

    @asynccontextmanager
    async def link(self, context: Context, fleet: FewNodes) -> AsyncIterator[Any]:
        if self.link_error:
            raise self.link_error
        async with self._noted("link"):
            yield None

    @asynccontextmanager
    async def _noted(self, name: str) -> AsyncIterator[None]:
        self.log.append(name)
        try:
            yield
        finally:
            self.log.append(f"-{name}")
