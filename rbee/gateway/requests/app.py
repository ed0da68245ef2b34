"""The gateway's HTTP: who is let in, what it answers itself, and what it passes on (`proxy`).

    GET  /v1/models, /v1/models/ID   every model that the client may ask for
    GET  /health, /v1/health         200, or 503 while it ends
    GET  /metrics                    for Prometheus
    GET  /lora-adapters              those of the model that ?model= names
    POST anything else               passed on to a worker that has the body's `model`, but for what is rbee's own there

Paths are served without /v1 too. Each request is recorded once, whatever ends it, and each answer has X-Request-Id.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rbee.base.errors import NodeError, RbeeError
from rbee.gateway.requests import headers
from rbee.gateway.requests.adapter_list import adapter_list
from rbee.gateway.requests.answer import Answer
from rbee.gateway.requests.errors import STATUSES, Form, Refusal, RefusedStatusError, form_of, refusal_of
from rbee.gateway.requests.exchange import Exchange
from rbee.gateway.requests.parts import Parts
from rbee.gateway.requests.patience import ClientGoneError
from rbee.gateway.requests.presence import until_known, when_known
from rbee.gateway.requests.proxy import pass_on
from rbee_remote.protocol import VERSION, ErrorCode, RemoteError
from rbee_remote.protocol.model_lists import model_list

Endpoint = Callable[[Request], Awaitable[Response]]

#: What a worker serves for rbee itself, under /v1 and without: never passed on.
_OWN = frozenset({"admin", "inference", "loading", "news", "ready", "requests", "workers"})
#: What the gateway serves itself.
_READ = frozenset({"", "health", "lora-adapters", "metrics", "models"})

_log = logging.getLogger("rbee.gateway")


def make_app(parts: Parts) -> Gateway:
    return Gateway(parts)


class Gateway:
    """The ASGI application. draining: nothing new is taken; what runs goes on to its end."""

    def __init__(self, parts: Parts) -> None:
        self.draining = False
        self._parts = parts
        self._app: ASGIApp = self._routes()
        #: What is posted goes to workers, whatever its path: without sites to be named (CORS), past all routes.
        self._posted: ASGIApp = self._app if parts.settings.origins else _PassOn(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        exchange = Exchange(
            headers.request_id(request.headers),
            request.method,
            scope["path"],
            traceparent=headers.traceparent(request.headers),
        )
        scope["rbee"] = exchange
        try:
            app = self._posted if exchange.method == "POST" else self._app
            await app(scope, receive, _signed(send, exchange))
        except BaseException as error:
            exchange.finish = exchange.finish or _finish_of(error)
            raise
        finally:
            self._parts.recorder.ended(exchange.ended())

    def _routes(self) -> ASGIApp:
        serve, models = self._served, self._show_models
        routes = [
            Route("/", serve(self._page, key=False)),
            *(Route(path, serve(self._health, key=False)) for path in ("/health", "/v1/health")),
            Route("/metrics", serve(self._metrics)),
            *(Route(path, serve(self._adapters)) for path in ("/lora-adapters", "/v1/lora-adapters")),
            *(Route(path, serve(models)) for path in ("/v1/models", "/models", "/v1/models/", "/models/")),
            *(Route(path, serve(self._show_model)) for path in ("/v1/models/{id:path}", "/models/{id:path}")),
            Route("/{path:path}", _PassOn(self)),
        ]
        settings = self._parts.settings
        middleware = []
        if settings.origins:
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=settings.origins,
                    allow_methods=["GET", "HEAD", "POST"],
                    allow_headers=["*"],
                    expose_headers=["X-Request-Id", "Retry-After"],
                )
            )
        app = Starlette(routes=routes, middleware=middleware)
        app.router.default = _PassOn(self)  # a path with a line end, or an address in its place
        app.router.redirect_slashes = False
        return app

    def _served(self, endpoint: Endpoint, *, key: bool = True) -> Endpoint:
        """An endpoint of the gateway's own, its errors in the caller's form. key: whether it takes one."""

        async def served(request: Request) -> Response:
            try:
                if key:
                    self.admit(request)
                return await endpoint(request)
            except RefusedStatusError as error:
                return _Refused(error.refusal)
            except RbeeError as error:
                return _Refused(refusal_of(error))

        return served

    def admit(self, request: Request) -> None:
        """Raises RefusedError INVALID_API_KEY; ConfigError where no key can be checked."""
        exchange: Exchange = request.scope["rbee"]
        exchange.was_let_in = False
        exchange.client = self._parts.gate.admit(request.headers, request.client.host if request.client else "")
        exchange.was_let_in = True

    async def pass_on(self, request: Request, answer: Answer) -> None:
        """Raises what ends the request."""
        exchange: Exchange = request.scope["rbee"]
        self.admit(request)
        if self.draining:
            raise RefusedStatusError(_ENDING)
        self._check_target(request)
        await pass_on(self._parts, request, exchange, answer)

    def _check_target(self, request: Request) -> None:
        """Raises RefusedStatusError for what is not passed on."""
        path, method = request.scope["path"], request.method
        word, taken = _word(path), _taken(path)
        if not path.startswith("/") or not path.isprintable():
            raise _refused(404, f"{path!r:.200} is no path")
        if word == "responses" and path.rstrip("/").count("/") > path.startswith("/v1/") + 1:
            raise _refused(404, f"{path:.200}: no worker keeps responses, whatever store says; send the whole input")
        if method not in taken and (word in _READ or path.startswith("/v1/")) and word not in _OWN:
            raise _refused(405, f"{path} takes {taken}, not {method}", {"Allow": taken})
        if method != "POST" or word in _OWN | _READ:
            raise _refused(404, f"the gateway does not serve {method} {path}; GET /v1/models lists its models")

    async def _page(self, _: Request) -> Response:
        return PlainTextResponse(f"rbee {VERSION}: the API is at /v1, its models at /v1/models\n")

    async def _health(self, _: Request) -> Response:
        if self.draining:
            return JSONResponse({"status": "ending"}, status_code=503, headers=_CLOSING)
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        if self._parts.metrics is None:
            return _Refused(Refusal(404, ErrorCode.USAGE.value, "this gateway has no metrics"))
        content, media_type = self._parts.metrics(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    async def _adapters(self, request: Request) -> Response:
        exchange: Exchange = request.scope["rbee"]
        fleet, names = self._parts.fleet, self._parts.names
        resolve = functools.partial(names.resolve, request.query_params.get("model", ""), exchange.client)
        resolved = await when_known(fleet, self._parts.settings.acquaint_s, resolve)
        return JSONResponse(adapter_list(resolved, fleet.nodes))

    async def _show_models(self, request: Request) -> Response:
        return JSONResponse(model_list(await self._listing(request)))

    async def _show_model(self, request: Request) -> Response:
        wanted = request.path_params["id"]
        exchange: Exchange = request.scope["rbee"]
        found = next((each for each in await self._listing(request) if each.get("id") == wanted), None)
        if found is None:
            self._parts.names.resolve(wanted, exchange.client)  # raises, with the nearest names, for most
            raise NodeError(ErrorCode.MODEL_NOT_FOUND, f"no node has the model {wanted!r:.200} yet")
        return JSONResponse(found)

    async def _listing(self, request: Request) -> list[dict[str, Any]]:
        exchange: Exchange = request.scope["rbee"]
        if self.draining:
            raise RefusedStatusError(_ENDING)
        await until_known(self._parts.fleet, self._parts.settings.acquaint_s)
        return list(self._parts.names.listing(exchange.client))


class _PassOn:
    """Everything that is not the gateway's own, and every error on its way, in the caller's form."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["rbee"]
        answer = Answer(send, exchange, scope.get("state", {}).get("flow"))
        if exchange.method == "OPTIONS":
            allowed = f"{_taken(exchange.path)}, OPTIONS"
            await Response(status_code=204, headers={"Allow": allowed})(scope, receive, send)
            return
        try:
            await self._gateway.pass_on(Request(scope, receive), answer)
        except RefusedStatusError as error:
            await answer.refuse(error.refusal)
        except (RbeeError, RemoteError) as error:
            await answer.refuse(refusal_of(error))
        except (ClientGoneError, ClientDisconnect):
            exchange.finish, exchange.status = _why_gone(answer, exchange), STATUSES[ErrorCode.REQUEST_CANCELED]
        except asyncio.CancelledError:  # by nobody but the server that ends, which has a second for those that hear it
            told = "the gateway was ended before the answer was complete"
            await answer.refuse(Refusal(503, ErrorCode.REQUEST_CANCELED.value, told, headers=_CLOSING))
        except Exception:
            _log.exception("request %s to %s failed", exchange.request_id, exchange.path)
            told = "the gateway failed; its log has the request's id"
            await answer.refuse(Refusal(500, ErrorCode.INTERNAL.value, told))


class _Refused(Response):
    """An error of the gateway's own endpoints."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__()
        self._refusal = refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        await Answer(send, scope["rbee"]).refuse(self._refusal)


def _word(path: str) -> str:
    """What a path is about: its first part, or the second one after /v1."""
    words = [word for word in path.split("/") if word]
    return next(iter(words[1:] if words[:1] == ["v1"] else words), "")


def _taken(path: str) -> str:
    """The methods of a path."""
    return "GET, HEAD" if _word(path) in _READ else "POST"


_CLOSING = {"Connection": "close", "Retry-After": "5"}
_ENDING = Refusal(503, ErrorCode.ALL_SLOTS_BUSY.value, "the gateway is ending; ask again in a moment", headers=_CLOSING)


def _refused(status: int, message: str, more: dict[str, str] | None = None) -> RefusedStatusError:
    return RefusedStatusError(Refusal(status, ErrorCode.USAGE.value, message, headers=more or {}))


def _signed(send: Send, exchange: Exchange) -> Send:
    """Puts the request's id onto its answer, and notes the status."""
    names = [headers.HEADER_REQUEST_ID.encode()]
    if form_of(exchange.path) is Form.ANTHROPIC:
        names.append(b"request-id")  # where Anthropic's libraries look for it

    async def signed(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            signature = [(name, exchange.request_id.encode()) for name in names]
            message["headers"] = [*message.get("headers", ()), *signature]
        await send(message)

    return signed


def _why_gone(answer: Answer, exchange: Exchange) -> str:
    if not answer.was_cut_off:
        return ErrorCode.REQUEST_CANCELED.value
    _log.warning("the client of request %s read its answer too slowly and was cut off", exchange.request_id)
    return ErrorCode.READER_TOO_SLOW.value


def _finish_of(error: BaseException) -> str:
    code = ErrorCode.INTERNAL if isinstance(error, Exception) else ErrorCode.REQUEST_CANCELED
    return str(code.value)
