"""The hive's HTTP API on its unix socket: routes, and nothing that decides.

Whoever can open the socket (mode 0600 in a folder of mode 0700) is the user that the hive runs as; the header
X-Rbee-Keeper says which keeper it was, for leases and the audit log.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rbee_remote.hive.models import registration
from rbee_remote.hive.models.catalog import Catalog, check_ref
from rbee_remote.hive.models.pulls import Pulls
from rbee_remote.hive.news import News
from rbee_remote.hive.record import WorkerRecord
from rbee_remote.hive.states import SERVING
from rbee_remote.hive.supervisor import Supervisor
from rbee_remote.protocol import (
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    HiveInfo,
    NeedsRequest,
    NodeLoad,
    ProtocolError,
    RegisterRequest,
    RemoteError,
    SpawnRequest,
    StopRequest,
    encode,
)
from rbee_remote.serving import errors, sse
from rbee_remote.serving.body import read_message
from rbee_remote.system import logs
from rbee_remote.system.audit import Audit, is_full
from rbee_remote.system.caller import caller_of

_log = logging.getLogger(__name__)

MAX_BODY = 1 << 20
#: Seconds that a step of the escalation may be told to wait.
MAX_PATIENCE_S = 600
STATE_INTERVAL_S = 5.0

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class HiveApi:
    """The routes' way to the hive. stop: asks the process to end, once the answer is out."""

    catalog: Catalog
    supervisor: Supervisor
    pulls: Pulls
    audit: Audit
    news: News
    info: Callable[[], HiveInfo]
    stop: Callable[[StopRequest], None]

    def app(self) -> Starlette:
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/v1/health", self.health),
            ("GET", "/v1/news", self.follow),
            ("GET", "/v1/workers", self.list_workers),
            ("POST", "/v1/workers", self.ensure_worker),
            ("POST", "/v1/preflight", self.preflight),
            ("GET", "/v1/workers/{worker}", self.show_worker),
            ("DELETE", "/v1/workers/{worker}", self.stop_worker),
            ("GET", "/v1/workers/{worker}/events", self.worker_events),
            ("GET", "/v1/models", self.list_models),
            ("POST", "/v1/models", self.register_model),
            ("DELETE", "/v1/models", self.remove_model),
            ("GET", "/v1/models/elsewhere", self.models_elsewhere),
            ("POST", "/v1/models/needs", self.model_needs),
            ("POST", "/v1/models/pull", self.pull_model),
            ("POST", "/v1/models/newest", self.newest_model),
            ("POST", "/v1/stop", self.stop_hive),
        ]
        return Starlette(
            routes=[Route(path, handler, methods=[method]) for method, path, handler in routes],
            exception_handlers={
                **errors.handlers("hive", errors.HIVE, hint="rbee logs NODE shows more"),
                ProtocolError: _on_protocol_error,
                OSError: _on_os_error,
            },
        )

    # --- hive -----------------------------------------------------------------------------------------------

    async def health(self, _: Request) -> Response:
        return JSONResponse(encode(self.info()))

    async def follow(self, request: Request) -> Response:
        async def stream() -> AsyncIterator[str]:
            async for news in self.news.follow(sse.HEARTBEAT_S):
                yield sse.WAITING if news is None else sse.event("news", encode(news))

        async def with_load() -> AsyncIterator[str]:
            async for told in self.news.watch():
                yield sse.event("load" if isinstance(told, NodeLoad) else "news", encode(told))

        return sse.EventStream(with_load() if request.query_params.get("load") else stream())

    async def stop_hive(self, request: Request) -> Response:
        how = _check_stop(await read_message(request, StopRequest, StopRequest(), most=MAX_BODY))
        self.audit.note("hive.stop", caller_of(request.headers))
        self.stop(how)
        return JSONResponse(encode(self.info()))

    # --- workers --------------------------------------------------------------------------------------------

    async def list_workers(self, _: Request) -> Response:
        return JSONResponse({"workers": [encode(worker.info()) for worker in self.supervisor.workers()]})

    async def preflight(self, request: Request) -> Response:
        spawn = await read_message(request, SpawnRequest, most=MAX_BODY)
        return JSONResponse(encode(await self.supervisor.preflight(spawn)))

    async def ensure_worker(self, request: Request) -> Response:
        spawn = await read_message(request, SpawnRequest, most=MAX_BODY)
        worker, started = await self.supervisor.ensure(spawn, caller_of(request.headers))
        info = replace(worker.info(), audit_head=self.audit.head()) if started else worker.info()
        return JSONResponse(encode(info), status_code=201 if started else 200)

    async def show_worker(self, request: Request) -> Response:
        return JSONResponse(encode(self._worker(request).info()))

    async def stop_worker(self, request: Request) -> Response:
        how = _check_stop(await read_message(request, StopRequest, StopRequest(), most=MAX_BODY))
        worker, caller = self._worker(request), caller_of(request.headers)
        if how.follower and worker.is_wanted_without(how.follower):
            return JSONResponse(encode(worker.info()))
        if how.only_idle_s is None:
            self.audit.note("worker.stop", caller, model=worker.key.model, worker=worker.id)
            await self.supervisor.stop(worker, how)
        else:
            await self.supervisor.stop_if_idle(worker, how, caller)
        return JSONResponse(encode(worker.info()))

    async def worker_events(self, request: Request) -> Response:
        worker, follower = self._worker(request), request.query_params.get("follower", "")

        async def stream() -> AsyncIterator[str]:
            with worker.followed(follower):
                while True:
                    seen = worker.changed.count
                    yield sse.event("state", encode(worker.info()))
                    if worker.state in SERVING or worker.gone.is_set():
                        return
                    await worker.changed.wait(STATE_INTERVAL_S, seen=seen)

        return sse.EventStream(stream())

    def _worker(self, request: Request) -> WorkerRecord:
        return self.supervisor.find(logs.check_worker_id(request.path_params["worker"]))

    # --- models ---------------------------------------------------------------------------------------------

    async def list_models(self, _: Request) -> Response:
        return JSONResponse({"models": [encode(model) for model in self.catalog.list()]})

    async def models_elsewhere(self, _: Request) -> Response:
        return JSONResponse({"models": [encode(model) for model in await registration.elsewhere()]})

    async def model_needs(self, request: Request) -> Response:
        what = await read_message(request, NeedsRequest, most=MAX_BODY)
        return JSONResponse(encode(await self.supervisor.needs(what)))

    async def register_model(self, request: Request) -> Response:
        what = await read_message(request, RegisterRequest, most=MAX_BODY)
        self.audit.record("model.register", caller_of(request.headers), model=what.model)
        return JSONResponse(encode(await registration.register(self.catalog, what)), status_code=201)

    async def remove_model(self, request: Request) -> Response:
        model = self.catalog.find(request.query_params.get("model", ""))
        user = self.supervisor.uses(model.path)
        if user is not None:
            raise RemoteError(
                ErrorCode.IN_USE,
                f"worker {user.id} uses {model.model}",
                hint=f"rbee workers stop {user.id}",
            )
        self.audit.note("model.remove", caller_of(request.headers), model=model.model)
        return JSONResponse(encode(self.catalog.remove(model.model)))

    async def newest_model(self, request: Request) -> Response:
        what = await read_message(request, DownloadRequest, most=MAX_BODY)
        check_ref(what.model)
        return JSONResponse(encode(await self.pulls.newest(what)))

    async def pull_model(self, request: Request) -> Response:
        what = await read_message(request, DownloadRequest, most=MAX_BODY)
        check_ref(what.model)
        registration.check_sha256(what.sha256)
        self.audit.record("model.pull", caller_of(request.headers), model=what.model)

        async def stream() -> AsyncIterator[str]:
            try:
                async with contextlib.aclosing(self.pulls.pull(what)) as items:
                    async for item in items:
                        yield sse.event("progress" if isinstance(item, DownloadProgress) else "done", encode(item))
            except RemoteError as error:
                yield sse.event("error", errors.shown(error).encode())

        return sse.EventStream(stream())


def _check_stop(request: StopRequest) -> StopRequest:
    """`request`, when its times make sense. Raises RemoteError USAGE."""
    if not 0 < request.patience_s <= MAX_PATIENCE_S:
        raise RemoteError(ErrorCode.USAGE, f"patience_s must be above 0 and {MAX_PATIENCE_S} at most")
    if request.only_idle_s is not None and request.only_idle_s < 0:
        raise RemoteError(ErrorCode.USAGE, "only_idle_s must not be negative")
    return request


def _on_protocol_error(_: Request, error: Exception) -> Response:
    return errors.response(RemoteError(ErrorCode.USAGE, str(error)), 400)


def _on_os_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    code = ErrorCode.DISK_FULL if is_full(error) else ErrorCode.INTERNAL
    told = RemoteError(code, f"the node cannot do that: {error.strerror or error}")
    return errors.response(told, errors.status_of(told, errors.HIVE))
