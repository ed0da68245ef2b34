"""A hive and its workers whose states a test sets: the real HTTP, byte by byte, over any stream.

node = ScriptedNode()
node.listen(connection)                      # at the sockets of a FakeConnection, or `await node.serve()` for real ones
node.tell(worker_info("a" * 16))             # what GET /v1/news says from now on
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import h11

from rbee.transport.connection import Stream
from rbee_remote.protocol import (
    Fit,
    HiveInfo,
    HiveNews,
    ModelInfo,
    ModelMeta,
    NodeLoad,
    SlotMemory,
    SpawnRequest,
    WorkerInfo,
    WorkerNews,
    WorkerState,
    WorkerStatus,
    decode,
    encode,
    greeting,
    keeper_socket,
)
from tests.doubles.connection import FakeConnection, Handler

SECRET = "5" * 32
#: A real one's is three seconds; tests have less patience with silence.
HEARTBEAT_S = 0.3
#: Answers a request to a worker: what it gives is sent as one chunk each.
Answers = Callable[[str, bytes], AsyncIterator[bytes]]


def model_info(model: str = "smollm2:135m", sha256: str = "f" * 64) -> ModelInfo:
    meta = ModelMeta("llama", 1, 1, 1, 1, 1, 1, 1)
    return ModelInfo(model, f"/models/{model}", 1, sha256, owned=True, source="", added_at=0.0, meta=meta)


def worker_info(
    worker_id: str = "a" * 16, state: WorkerState = WorkerState.IDLE, *, run_dir: str = "/run", progress: float = 1.0
) -> WorkerInfo:
    return WorkerInfo(
        id=worker_id,
        model="smollm2:135m",
        state=state,
        backend="cpu",
        device="cpu",
        socket=f"{run_dir}/{worker_id}.sock",
        pid=1,
        start_ticks=1,
        boot_id="b",
        ctx=512,
        slots=2,
        slots_free=2,
        keep_alive_s=60.0,
        created_at=0.0,
        progress=progress,
        idle_s=0.0,
        secret=SECRET,
        sha256="f" * 64,
    )


def worker_news(info: WorkerInfo, *, slots_free: int = 2, held: Sequence[SlotMemory] = ()) -> WorkerNews:
    status = WorkerStatus(
        id=info.id,
        model=info.model,
        state=info.state,
        progress=1.0,
        ctx=info.ctx,
        slots=info.slots,
        slots_free=slots_free,
        queued=0,
        idle_s=1.0,
    )
    return WorkerNews(status, tuple(held), typical_s=0.5)


async def says_hello(path: str, body: bytes) -> AsyncIterator[bytes]:
    yield b"data: hello\n\n"


class ScriptedNode:
    """workers, models: what the hive says. spawned: what was asked for; `spawn` has the worker that it is given.

    load: what who watches is told beside, None for a hive that knows no such thing.
    mute: nothing that follows news hears anything any more, not even that it is open. answers: a worker's, of
    media_type.
    """

    def __init__(self, run_dir: str = "/run") -> None:
        self.run_dir = run_dir
        self.models: tuple[ModelInfo, ...] = (model_info(),)
        self.workers: dict[str, WorkerInfo] = {}
        self.own: dict[str, WorkerNews] = {}
        self.spawned: list[SpawnRequest] = []
        self.stopped: list[str] = []
        self.asked = 0
        self.load: NodeLoad | None = None
        self.spawn = worker_info("b" * 16, WorkerState.LOADING, run_dir=run_dir, progress=0.0)
        self.mute = False
        self.answers: Answers = says_hello
        self.media_type = "text/event-stream"
        self.requests: list[tuple[str, str, bytes]] = []
        self._changed = asyncio.Condition()
        self._connections: list[FakeConnection] = []

    @property
    def hive_socket(self) -> str:
        return f"{self.run_dir}/hive.sock"

    @property
    def info(self) -> HiveInfo:
        return HiveInfo(
            1, "0", "", "i" * 16, 1, 1, "b", 0.0, "/home", self.hive_socket, workers=len(self.workers), draining=False
        )

    async def tell(self, *workers: WorkerInfo, **own: WorkerNews) -> None:
        """What there is from now on. own: by id, what workers say themselves."""
        self.workers = {info.id: info for info in workers}
        self.own = {info.id: own.get(info.id) or worker_news(info) for info in workers}
        for connection in self._connections:
            self._listen_workers(connection)
        await self.changed()

    async def changed(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def listen(self, connection: FakeConnection) -> None:
        self._connections.append(connection)
        connection.listen(self.hive_socket, self.hive)
        self._listen_workers(connection)

    def _listen_workers(self, connection: FakeConnection) -> None:
        for info in (*self.workers.values(), self.spawn):
            connection.listen(keeper_socket(info.socket), self.worker(info.id))

    @asynccontextmanager
    async def serve(self, *worker_ids: str) -> AsyncIterator[None]:
        """At real sockets in `run_dir`."""
        sockets: dict[str, Callable[[Stream], Awaitable[None]]] = {self.hive_socket: self.hive}
        for worker_id in worker_ids:
            sockets[keeper_socket(f"{self.run_dir}/{worker_id}.sock")] = self.worker(worker_id)
        tasks: set[asyncio.Task[Any]] = set()
        servers = [
            await asyncio.start_unix_server(_over(each, tasks), path, backlog=512) for path, each in sockets.items()
        ]
        try:
            yield
        finally:
            for server in servers:
                server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for path in sockets:
                Path(path).unlink(missing_ok=True)

    async def hive(self, stream: Stream) -> None:
        self.asked += 1
        if not (http := await _Http.read(stream)):
            return
        match (http.method, http.path.partition("?")[0]):
            case ("GET", "/v1/news"):
                await self._news(
                    http,
                    lambda: encode(HiveNews(tuple(self.workers.values()), self.models)),
                    lambda: encode(self.load) if self.load and "load=1" in http.path else None,
                )
            case ("GET", "/v1/health"):
                await http.answer(encode(self.info))
            case ("GET", "/v1/models"):
                await http.answer({"models": [encode(model) for model in self.models]})
            case ("POST", "/v1/preflight"):
                await http.answer(encode(Fit("ram", 1, 2, 1, 0, 0, "cpu", "cpu")))
            case ("POST", "/v1/workers"):
                self.spawned.append(decode(SpawnRequest, json.loads(http.body)))
                if self.spawn.id not in self.workers:
                    await self.tell(*self.workers.values(), self.spawn)
                await http.answer(encode(self.workers[self.spawn.id]))
            case ("GET", _):  # a worker's states
                await self._states(http, http.path.split("/")[3])
            case ("DELETE", path):
                self.stopped.append(path.split("/")[3])
                info = self.workers.pop(self.stopped[-1], self.spawn)
                await self.changed()
                await http.answer(encode(info))

    def worker(self, worker_id: str) -> Callable[[Stream], Awaitable[None]]:
        async def serve(stream: Stream) -> None:
            await stream.write(greeting(SECRET))
            if not (http := await _Http.read(stream)):
                return None
            if http.path == "/v1/news":
                return await self._news(http, lambda: encode(self.own[worker_id]))
            self.requests.append((http.method, http.path, http.body))
            await http.begin(self.media_type)
            async for piece in self.answers(http.path, http.body):
                await http.send(piece)
            return await http.end()

        return serve

    async def _news(self, http: _Http, news: Callable[[], Any], load: Callable[[], Any] = lambda: None) -> None:
        await http.begin()
        said: tuple[Any, Any] = (None, None)
        while True:
            before = said
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    said = await self._another(said, lambda: (news(), load()))
            except TimeoutError:
                if not self.mute:
                    await http.send(b": waiting\n\n")
                continue
            for name, now, then in zip(("news", "load"), said, before, strict=True):
                if now is not None and now != then:
                    await http.send(f"event: {name}\ndata: {json.dumps(now)}\n\n".encode())

    async def _states(self, http: _Http, worker_id: str) -> None:
        await http.begin()
        said: WorkerInfo | None = None
        while said is None or said.state in (WorkerState.STARTING, WorkerState.LOADING):
            said = await self._another(said, lambda: self.workers[worker_id])
            await http.send(f"event: state\ndata: {json.dumps(encode(said))}\n\n".encode())
        await http.end()

    async def _another(self, said: Any, now: Callable[[], Any]) -> Any:
        async with self._changed:
            await self._changed.wait_for(lambda: not self.mute and now() != said)
            return now()


class _Http:
    """One request, and its answer."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._h11 = h11.Connection(h11.SERVER)
        self.method = self.path = ""
        self.body = b""

    @classmethod
    async def read(cls, stream: Stream) -> _Http | None:
        """None where the client hangs up before."""
        http = cls(stream)
        while not isinstance(event := http._h11.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http._h11.receive_data(await stream.read(2**16))
            elif isinstance(event, h11.Request):
                http.method, http.path = event.method.decode(), event.target.decode()
            elif isinstance(event, h11.Data):
                http.body += bytes(event.data)
            else:
                return None
        return http

    async def answer(self, value: Any) -> None:
        await self._send(h11.Response(status_code=200, headers=[("Transfer-Encoding", "chunked")]))
        await self.send(json.dumps(value).encode())
        await self.end()

    async def begin(self, media_type: str = "text/event-stream") -> None:
        headers = [("Content-Type", media_type), ("Transfer-Encoding", "chunked")]
        await self._send(h11.Response(status_code=200, headers=headers))

    async def send(self, piece: bytes) -> None:
        await self._send(h11.Data(data=piece))

    async def end(self) -> None:
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        await self._stream.write(self._h11.send(event) or b"")


class _SocketStream:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int) -> bytes:
        return await self._reader.read(max_bytes)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()


def _over(handler: Handler, serving: set[asyncio.Task[Any]]) -> Callable[..., Awaitable[None]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        task.add_done_callback(serving.discard)
        stream = _SocketStream(reader, writer)
        with suppress(OSError, asyncio.CancelledError):
            await handler(stream)
        await stream.aclose()

    return serve
