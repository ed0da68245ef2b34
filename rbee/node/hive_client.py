"""Typed calls to a hive and to a worker.

Rules
- All that comes back is checked: its shape by `protocol.decode`, and here whatever goes on into paths and headers.
- Whatever else an answer says raises NonsenseError.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, urlencode

from rbee.base.errors import NodeError
from rbee.base.retries import (
    CANCEL_TIMEOUT_S,
    HEALTH_TIMEOUT_S,
    NEEDS_TIMEOUT_S,
    NEWS_SILENCE_S,
    REGISTER_S,
    STALLED_LOAD_S,
    STOP_TIMEOUT_S,
    STREAM_SILENCE_S,
    WORKER_HEALTH_S,
)
from rbee.base.who import who
from rbee.node.socket_http import NonsenseError, ServerSentEvent, SocketHttp
from rbee.transport.connection import Connection
from rbee_remote.protocol import (
    HEADER_KEEPER,
    HEADER_WHO,
    HEADER_WORKER,
    BenchProgress,
    BenchRequest,
    BenchResult,
    Done,
    DownloadProgress,
    DownloadRequest,
    ErrorCode,
    Fit,
    GenerateRequest,
    HiveInfo,
    HiveNews,
    ModelInfo,
    ModelNeeds,
    NeedsRequest,
    ProtocolError,
    RegisterRequest,
    SpawnRequest,
    Started,
    StopRequest,
    TokenEvent,
    WorkerInfo,
    WorkerNews,
    WorkerStatus,
    decode,
    encode,
    greeting,
    keeper_socket,
)
from rbee_remote.protocol.load_options import MOST_SLOTS
from rbee_remote.protocol.prompt_digest import GAP

Generated = Started | TokenEvent | Done
T = TypeVar("T")

STOP_STEPS = 3
#: What of a load counts as progress, as a share of the whole.
_PROGRESS = 0.001
#: Bytes of a socket's path on Linux; elsewhere it is less.
_LONGEST_SOCKET = 107


class HiveClient:
    """The hive that listens on `socket` of the node behind `connection`."""

    def __init__(self, connection: Connection, socket: str, *, keeper_id: str) -> None:
        self._http = SocketHttp(connection, socket, {HEADER_KEEPER: keeper_id, HEADER_WHO: who()})

    async def health(self) -> HiveInfo:
        return _decode(HiveInfo, await self._http.request("GET", "/v1/health", timeout=HEALTH_TIMEOUT_S))

    async def health_or_none(self) -> HiveInfo | None:
        """None where nobody listens: no hive runs, whatever is left of its socket."""
        try:
            return await self.health()
        except NodeError as error:
            if error.code is not ErrorCode.WORKER_GONE:
                raise
            return None

    async def workers(self) -> list[WorkerInfo]:
        return [_worker(item) for item in _list(await self._http.request("GET", "/v1/workers"), "workers")]

    async def worker(self, worker_id: str) -> WorkerInfo:
        """Raises NodeError WORKER_GONE for one that the hive has forgotten."""
        return _worker(await self._http.request("GET", f"/v1/workers/{quote(worker_id, safe='')}"))

    @asynccontextmanager
    async def follow(self, *, silence_s: float = NEWS_SILENCE_S) -> AsyncIterator[AsyncIterator[HiveNews]]:
        """Its workers and its catalog, at once and at each change, until it ends. Following does not keep it alive.

        silence_s: without a byte after which it is taken for hung; it sends a comment every three.
        """
        async with self._http.events("GET", "/v1/news", silence=silence_s) as events:
            yield (_hive_news(event) async for event in events)

    async def preflight(self, spawn: SpawnRequest) -> Fit:
        """Raises NodeError RAM_EXHAUSTED, VRAM_EXHAUSTED, BACKEND_UNAVAILABLE or MODEL_NOT_FOUND."""
        return _decode(Fit, await self._http.request("POST", "/v1/preflight", encode(spawn)))

    async def ensure_worker(self, spawn: SpawnRequest) -> WorkerInfo:
        """The worker for a model, found or started; it may still be loading."""
        return _worker(await self._http.request("POST", "/v1/workers", encode(spawn)))

    @asynccontextmanager
    async def worker_states(self, worker_id: str, *, follower: str) -> AsyncIterator[AsyncIterator[WorkerInfo]]:
        """A worker's state at each change, until it serves or failed. follower: a name for `StopRequest.follower`.

        Raises NodeError LOADING_TIMEOUT when the hive goes on without the worker getting further.
        """
        path = f"/v1/workers/{quote(worker_id, safe='')}/events?{urlencode({'follower': follower})}"
        try:
            async with asyncio.timeout(STALLED_LOAD_S) as patience, self._http.events("GET", path) as events:
                yield _progressing(events, patience)
        except TimeoutError as error:
            raise NodeError(
                ErrorCode.LOADING_TIMEOUT,
                f"loading made no progress for {STALLED_LOAD_S:g} s, and its hive did not end it",
                hint="see `rbee logs NODE`; `rbee hive stop NODE --now` ends it",
            ) from error

    async def stop_worker(self, worker_id: str, stop: StopRequest | None = None) -> WorkerInfo:
        """Returns when the worker's process is gone."""
        stop = stop or StopRequest()
        path, timeout = f"/v1/workers/{quote(worker_id, safe='')}", _stop_timeout(stop)
        return _worker(await self._http.request("DELETE", path, encode(stop), timeout=timeout))

    async def models(self) -> list[ModelInfo]:
        return [_decode(ModelInfo, item) for item in _list(await self._http.request("GET", "/v1/models"), "models")]

    async def register(self, request: RegisterRequest) -> ModelInfo:
        """Take a file on the node into the catalog; checking its SHA-256 takes seconds per gigabyte."""
        return _decode(ModelInfo, await self._http.request("POST", "/v1/models", encode(request), timeout=REGISTER_S))

    async def needs(self, request: NeedsRequest) -> ModelNeeds:
        """What a model on the node needs. Raises NodeError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE."""
        answer = await self._http.request("POST", "/v1/models/needs", encode(request), timeout=NEEDS_TIMEOUT_S)
        return _decode(ModelNeeds, answer)

    async def pull(self, request: DownloadRequest) -> AsyncIterator[DownloadProgress | ModelInfo]:
        """Download on the node: progress, and the model as the last item. Closing the generator cancels."""
        async with self._http.events("POST", "/v1/models/pull", encode(request)) as events:
            async for event in events:
                if event.event == "done":
                    yield _decode(ModelInfo, event.data)
                else:
                    yield _decode(DownloadProgress, event.data)

    async def remove(self, model: str) -> ModelInfo:
        return _decode(ModelInfo, await self._http.request("DELETE", f"/v1/models?{urlencode({'model': model})}"))

    async def stop(self, stop: StopRequest) -> HiveInfo:
        """Ask the hive to end, and wait until it is gone.

        Raises NodeError IN_USE when its workers are still at work after three minutes.
        """
        info = _decode(HiveInfo, await self._http.request("POST", "/v1/stop", encode(stop)))
        try:
            async with asyncio.timeout(_stop_timeout(stop)):
                while (now := await self.health_or_none()) and now.instance == info.instance:  # noqa: ASYNC110 - it is elsewhere
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise NodeError(
                ErrorCode.IN_USE,
                f"the hive still waits for its {info.workers} workers to finish",
                hint="try again later; `rbee hive stop NODE --now` does not wait for running requests",
            ) from error
        return info


def _stop_timeout(stop: StopRequest) -> float:
    return STOP_TIMEOUT_S + STOP_STEPS * stop.patience_s


class WorkerClient:
    """The worker `worker_id` that listens on `socket`; another worker there answers WORKER_GONE.

    secret: what it proves with that it is this worker, before it is told anything; "" only where the socket's folder
    was checked on this connection.
    """

    def __init__(
        self, connection: Connection, socket: str, *, worker_id: str, keeper_id: str, secret: str = ""
    ) -> None:
        headers = {HEADER_KEEPER: keeper_id, HEADER_WHO: who(), HEADER_WORKER: worker_id}
        path, first = (keeper_socket(socket), greeting(secret)) if secret else (socket, b"")
        self._http = SocketHttp(connection, path, headers, greeting=first)

    async def health(self) -> WorkerStatus:
        return _decode(WorkerStatus, await self._http.request("GET", "/v1/health", timeout=WORKER_HEALTH_S))

    @asynccontextmanager
    async def follow(self, *, silence_s: float = NEWS_SILENCE_S) -> AsyncIterator[AsyncIterator[WorkerNews]]:
        """Its status and what its slots hold, at once and at each change, until it ends. Following does not keep it
        alive. silence_s: as in `HiveClient.follow`."""
        async with self._http.events("GET", "/v1/news", silence=silence_s) as events:
            yield (_worker_news(event) async for event in events)

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest, *, silence_s: float = STREAM_SILENCE_S
    ) -> AsyncIterator[AsyncIterator[Numbered]]:
        """The events of one answer, from the first. Asked again with the same id, the worker computes it once.

        silence_s: without a byte after which the worker is taken for hung; it sends a comment every three.
        Raises NodeError WORKER_GONE, ALL_SLOTS_BUSY, USAGE before the first.
        """
        async with self._http.events("POST", "/v1/inference", encode(request), silence=silence_s) as events:
            yield (_numbered(event) async for event in events)

    @asynccontextmanager
    async def resume(
        self, request_id: str, *, after: int, silence_s: float = STREAM_SILENCE_S
    ) -> AsyncIterator[AsyncIterator[Numbered]]:
        """The events of a request that runs or ended a short while ago, those with a number above `after`.

        Raises NodeError REQUEST_GONE where the worker has forgotten it, WORKER_GONE.
        """
        headers = {"Last-Event-ID": str(after)}
        path = f"/v1/requests/{quote(request_id)}/events"
        async with self._http.events("GET", path, silence=silence_s, headers=headers) as events:
            yield (_numbered(event) async for event in events)

    @asynccontextmanager
    async def bench(self, request: BenchRequest) -> AsyncIterator[AsyncIterator[BenchProgress | BenchResult]]:
        """Progress, and the result as the last item; leaving the context ends the measurement.

        Raises NodeError IN_USE, USAGE or WORKER_GONE before the first.
        """
        async with self._http.events("POST", "/v1/admin/bench", encode(request)) as events:
            yield (_bench_event(event) async for event in events)

    async def cancel(self, request_id: str) -> None:
        await self._http.request("DELETE", f"/v1/requests/{quote(request_id)}", timeout=CANCEL_TIMEOUT_S)


class Numbered(NamedTuple):
    """An event of an answer. number: 1 for the first."""

    number: int
    event: Generated


def _numbered(event: ServerSentEvent) -> Numbered:
    if not re.fullmatch(r"[0-9]{1,18}", event.id):
        raise NonsenseError("an event without a number")
    return Numbered(int(event.id), _generated(event.event, event.data))


def _bench_event(event: ServerSentEvent) -> BenchProgress | BenchResult:
    return _decode(BenchResult, event.data) if event.event == "done" else _decode(BenchProgress, event.data)


def _generated(event: str, data: Any) -> Generated:
    match event:
        case "token":
            return _decode(TokenEvent, data)
        case "started":
            return _decode(Started, data)
        case "done":
            return _decode(Done, data)
    raise NonsenseError(f"an event of the kind {event[:40]!r}")


def _hive_news(event: ServerSentEvent) -> HiveNews:
    news = _decode(HiveNews, _named("news", event))
    for worker in news.workers:
        _check(worker)
    for sha256 in [info.sha256 for info in news.workers] + [model.sha256 for model in news.models or ()]:
        if not re.fullmatch(r"([0-9a-f]{64})?", sha256):
            raise NonsenseError(f"a model with the SHA-256 {sha256[:40]!r}")
    return news


def _worker_news(event: ServerSentEvent) -> WorkerNews:
    news = _decode(WorkerNews, _named("news", event))
    status = news.status
    if not 0 <= status.slots_free <= status.slots <= MOST_SLOTS or status.queued < 0:
        raise NonsenseError(f"{status.slots_free} of {status.slots} slots free, {status.queued} queued")
    if len({memory.slot for memory in news.slots}) < len(news.slots):
        raise NonsenseError("a slot with two memories")
    for memory in news.slots:
        if not 0 <= memory.slot < status.slots:
            raise NonsenseError(f"a memory of slot {memory.slot} of {status.slots}")
        if not all(digest == GAP or re.fullmatch(r"[0-9a-f]{16}", digest) for digest in memory.digests):
            raise NonsenseError("a digest that is none")
    return news


def _named(name: str, event: ServerSentEvent) -> Any:
    if event.event != name:
        raise NonsenseError(f"an event of the kind {event.event[:40]!r}")
    return event.data


def _worker(data: Any) -> WorkerInfo:
    """Its id becomes part of paths and headers, its socket is connected to."""
    return _check(_decode(WorkerInfo, data))


def _check(worker: WorkerInfo) -> WorkerInfo:
    if not re.fullmatch(r"[0-9a-f]{16}", worker.id):
        raise NonsenseError(f"a worker with the id {worker.id[:40]!r}")
    if not worker.socket.startswith("/") or "\0" in worker.socket or len(worker.socket.encode()) > _LONGEST_SOCKET:
        raise NonsenseError(f"a worker with the socket {worker.socket[:40]!r}")
    if not re.fullmatch(r"([0-9a-f]{32})?", worker.secret):
        raise NonsenseError("a worker with an invalid secret")
    return worker


async def _progressing(events: AsyncIterator[ServerSentEvent], patience: asyncio.Timeout) -> AsyncIterator[WorkerInfo]:
    """The states of a load; each that is further than all before buys time for the next."""
    furthest = 0.0
    async for event in events:
        worker = _worker(event.data)
        if worker.progress > furthest + _PROGRESS:
            furthest = worker.progress
            patience.reschedule(asyncio.get_running_loop().time() + STALLED_LOAD_S)
        yield worker


def _decode(cls: type[T], data: Any) -> T:
    try:
        return decode(cls, data)
    except ProtocolError as error:
        raise NonsenseError(str(error)) from error


def _list(data: Any, key: str) -> list[Any]:
    items = data.get(key) if isinstance(data, dict) else None
    if not isinstance(items, list):
        raise NonsenseError(f"no list of {key}")
    return items
