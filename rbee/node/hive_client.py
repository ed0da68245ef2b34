"""Typed calls to a hive and to a worker. All that comes back goes through `answers`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlencode

from rbee.base.errors import NodeError
from rbee.base.retries import (
    CANCEL_TIMEOUT_S,
    HEALTH_TIMEOUT_S,
    NEEDS_TIMEOUT_S,
    NEWS_SILENCE_S,
    REGISTER_S,
    REGISTER_S_PER_GB,
    STALLED_LOAD_S,
    STOP_TIMEOUT_S,
    STREAM_SILENCE_S,
    WORKER_HEALTH_S,
)
from rbee.base.who import who
from rbee.node.answers import (
    Numbered,
    bench_event,
    checked,
    hive_news,
    listed,
    numbered,
    watched,
    worker_info,
    worker_news,
)
from rbee.node.socket_http import ServerSentEvent, SocketHttp
from rbee.transport.connection import Connection
from rbee_remote.protocol import (
    HEADER_KEEPER,
    HEADER_WHO,
    HEADER_WORKER,
    BenchProgress,
    BenchRequest,
    BenchResult,
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
    NewestModel,
    NodeLoad,
    RegisterRequest,
    SpawnRequest,
    StopRequest,
    WorkerInfo,
    WorkerNews,
    WorkerStatus,
    encode,
    greeting,
    keeper_socket,
)
from rbee_remote.protocol.elsewhere import FoundElsewhere

STOP_STEPS = 3
#: What of a load counts as progress, as a share of the whole.
_PROGRESS = 0.001


class HiveClient:
    """The hive that listens on `socket` of the node behind `connection`."""

    def __init__(self, connection: Connection, socket: str, *, keeper_id: str) -> None:
        self._http = SocketHttp(connection, socket, {HEADER_KEEPER: keeper_id, HEADER_WHO: who()})

    async def health(self) -> HiveInfo:
        return checked(HiveInfo, await self._http.request("GET", "/v1/health", timeout=HEALTH_TIMEOUT_S))

    async def health_or_none(self) -> HiveInfo | None:
        """None where nobody listens: no hive runs, whatever is left of its socket."""
        try:
            return await self.health()
        except NodeError as error:
            if error.code is not ErrorCode.WORKER_GONE:
                raise
            return None

    async def workers(self) -> list[WorkerInfo]:
        return [worker_info(item) for item in listed(await self._http.request("GET", "/v1/workers"), "workers")]

    async def worker(self, worker_id: str) -> WorkerInfo:
        """Raises NodeError WORKER_GONE for one that the hive has forgotten."""
        return worker_info(await self._http.request("GET", f"/v1/workers/{quote(worker_id, safe='')}"))

    @asynccontextmanager
    async def follow(self, *, silence_s: float = NEWS_SILENCE_S) -> AsyncIterator[AsyncIterator[HiveNews]]:
        """Its workers and its catalog, at once and at each change, until it ends. Following does not keep it alive.

        silence_s: without a byte after which it is taken for hung; it sends a comment every three.
        """
        async with self._http.events("GET", "/v1/news", silence=silence_s) as events:
            yield (hive_news(event) async for event in events)

    @asynccontextmanager
    async def watch(self, *, silence_s: float = NEWS_SILENCE_S) -> AsyncIterator[AsyncIterator[HiveNews | NodeLoad]]:
        """As `follow`, and every second how much there is to do; of a hive that knows no such thing, without that."""
        async with self._http.events("GET", "/v1/news?load=1", silence=silence_s) as events:
            yield (watched(event) async for event in events)

    async def preflight(self, spawn: SpawnRequest) -> Fit:
        """Raises NodeError RAM_EXHAUSTED, VRAM_EXHAUSTED, BACKEND_UNAVAILABLE or MODEL_NOT_FOUND."""
        answer = await self._http.request("POST", "/v1/preflight", encode(spawn), timeout=NEEDS_TIMEOUT_S)
        return checked(Fit, answer)

    async def ensure_worker(self, spawn: SpawnRequest) -> WorkerInfo:
        """The worker for a model, found or started; it may still be loading."""
        return worker_info(await self._http.request("POST", "/v1/workers", encode(spawn), timeout=NEEDS_TIMEOUT_S))

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
        return worker_info(await self._http.request("DELETE", path, encode(stop), timeout=timeout))

    async def models(self) -> list[ModelInfo]:
        return [checked(ModelInfo, item) for item in listed(await self._http.request("GET", "/v1/models"), "models")]

    async def elsewhere(self) -> list[FoundElsewhere]:
        """Models of other programs on the node."""
        answer = await self._http.request("GET", "/v1/models/elsewhere", timeout=NEEDS_TIMEOUT_S)
        return [checked(FoundElsewhere, item) for item in listed(answer, "models")]

    async def register(self, request: RegisterRequest, size: int = 0) -> ModelInfo:
        """Take a file on the node into the catalog; checking its SHA-256 takes seconds per gigabyte. size: bytes, where
        they are known here."""
        timeout = REGISTER_S + size / 10**9 * REGISTER_S_PER_GB
        return checked(ModelInfo, await self._http.request("POST", "/v1/models", encode(request), timeout=timeout))

    async def needs(self, request: NeedsRequest) -> ModelNeeds:
        """What a model on the node needs. Raises NodeError MODEL_NOT_FOUND, USAGE, BACKEND_UNAVAILABLE."""
        answer = await self._http.request("POST", "/v1/models/needs", encode(request), timeout=NEEDS_TIMEOUT_S)
        return checked(ModelNeeds, answer)

    async def newest(self, request: DownloadRequest) -> NewestModel:
        """What a hub source stands for now, asked from the node. Raises NodeError MODEL_NOT_FOUND, DOWNLOAD_FAILED."""
        answer = await self._http.request("POST", "/v1/models/newest", encode(request), timeout=NEEDS_TIMEOUT_S)
        return checked(NewestModel, answer)

    async def pull(self, request: DownloadRequest) -> AsyncIterator[DownloadProgress | ModelInfo]:
        """Download on the node: progress, and the model as the last item. Closing the generator cancels."""
        async with self._http.events("POST", "/v1/models/pull", encode(request)) as events:
            async for event in events:
                if event.event == "done":
                    yield checked(ModelInfo, event.data)
                else:
                    yield checked(DownloadProgress, event.data)

    async def remove(self, model: str) -> ModelInfo:
        return checked(ModelInfo, await self._http.request("DELETE", f"/v1/models?{urlencode({'model': model})}"))

    async def stop(self, stop: StopRequest) -> HiveInfo:
        """Ask the hive to end, and wait until it is gone.

        Raises NodeError IN_USE when its workers are still at work after three minutes.
        """
        info = checked(HiveInfo, await self._http.request("POST", "/v1/stop", encode(stop)))
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
        return checked(WorkerStatus, await self._http.request("GET", "/v1/health", timeout=WORKER_HEALTH_S))

    @asynccontextmanager
    async def follow(self, *, silence_s: float = NEWS_SILENCE_S) -> AsyncIterator[AsyncIterator[WorkerNews]]:
        """Its status and what its slots hold, at once and at each change, until it ends. Following does not keep it
        alive. silence_s: as in `HiveClient.follow`."""
        async with self._http.events("GET", "/v1/news", silence=silence_s) as events:
            yield (worker_news(event) async for event in events)

    @asynccontextmanager
    async def generate(
        self, request: GenerateRequest, *, silence_s: float = STREAM_SILENCE_S
    ) -> AsyncIterator[AsyncIterator[Numbered]]:
        """The events of one answer, from the first. Asked again with the same id, the worker computes it once.

        silence_s: without a byte after which the worker is taken for hung; it sends a comment every three.
        Raises NodeError WORKER_GONE, ALL_SLOTS_BUSY, USAGE before the first.
        """
        async with self._http.events("POST", "/v1/inference", encode(request), silence=silence_s) as events:
            yield (numbered(event) async for event in events)

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
            yield (numbered(event) async for event in events)

    @asynccontextmanager
    async def bench(self, request: BenchRequest) -> AsyncIterator[AsyncIterator[BenchProgress | BenchResult]]:
        """Progress, and the result as the last item; leaving the context ends the measurement.

        Raises NodeError IN_USE, USAGE or WORKER_GONE before the first.
        """
        async with self._http.events("POST", "/v1/admin/bench", encode(request)) as events:
            yield (bench_event(event) async for event in events)

    async def cancel(self, request_id: str) -> None:
        await self._http.request("DELETE", f"/v1/requests/{quote(request_id)}", timeout=CANCEL_TIMEOUT_S)


async def _progressing(events: AsyncIterator[ServerSentEvent], patience: asyncio.Timeout) -> AsyncIterator[WorkerInfo]:
    """The states of a load; each that is further than all before buys time for the next."""
    furthest = 0.0
    async for event in events:
        worker = worker_info(event.data)
        if worker.progress > furthest + _PROGRESS:
            furthest = worker.progress
            patience.reschedule(asyncio.get_running_loop().time() + STALLED_LOAD_S)
        yield worker
