"""uvicorn as hive, worker and gateway run it: on sockets that are bound already, without signals, without ticking, and
with bounds on what clients keep open.

Rules
- A connection without a request is ended after a while, however busily it sends what becomes none.
- Where there are too many, the one that has been without a request for the longest makes room: who says nothing keeps
  nobody out. Only where all have a request is another refused.
- A request that was taken, and its answer, take as long as they take; `body` bounds what the client has to send. Only
  a client that reads nothing of its answer for minutes is cut off, with what lies here for it; or as a `Flow` has it.
- Who is behind with its answers gets no further one: its next request is read when it has taken them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from rbee_remote.protocol import ErrorCode, RemoteError

#: Many times what a worker's slots and queue hold; each takes a descriptor, of which there are 1,024 as a rule.
CONNECTIONS = 256
#: Seconds for a TLS handshake: three round trips, on any line.
HANDSHAKE_S = 10.0
#: Seconds for the head of a request. Between two requests uvicorn waits five.
HEAD_S = 30.0
#: Bytes that are gathered before they are sent: as many as wait for a slow reader.
MOST_GATHERED = 2**16
#: Seconds without a byte read, while more than uvicorn's 64 KB wait: a line that is so slow is none.
READER_S = 300.0


class Flow(FlowControl):
    """What a connection does about a client that is behind with reading its answer. on_clear: called when it is not
    any more. has_request: whether an answer is under way. was_cut_off: for reading too slowly."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.on_clear: Callable[[], None] = lambda: None
        self.has_request: Callable[[], bool] = lambda: False
        self.was_cut_off = False

    @property
    def is_behind(self) -> bool:
        """Whether so much waits for the client that its connection must not be ended for being idle."""
        return self.write_paused

    async def has_all(self) -> bool:
        """Once the client has taken so much that its request is over; False where it never will."""
        return True

    def nothing_follows(self) -> None:
        """What lies here for the client is all that it gets, until its next request at least."""

    def resume_writing(self) -> None:
        super().resume_writing()
        self.on_clear()

    def cut_off(self) -> None:
        self.was_cut_off = True
        self._transport.abort()  # to close it would mean to wait until all is read

    def closed(self, error: Exception | None) -> None:
        """The connection is gone. error: None where it was ended from here."""


class ReadOrLeave(Flow):
    """Lets nothing more come, and cuts off who reads nothing for `reader_s` seconds."""

    def __init__(self, transport: asyncio.Transport, reader_s: float) -> None:
        super().__init__(transport)
        self._reader_s = reader_s
        self._timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._timer = asyncio.get_running_loop().call_later(self._reader_s, self.cut_off)

    def resume_writing(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        super().resume_writing()


@dataclass(slots=True)
class Bounds:
    """connections: open at once. head_s: seconds that one may be open without a request. reader_s: seconds that a
    client may read nothing while its answer cannot go on. flow: another one for each connection than `ReadOrLeave`;
    the app finds it as `scope["state"]["flow"]`."""

    connections: int = CONNECTIONS
    head_s: float = HEAD_S
    reader_s: float = READER_S
    flow: Callable[[asyncio.Transport], Flow] | None = None
    #: Connections without a request, the one that has been so for the longest first.
    waiting: dict[_Connection, None] = field(default_factory=dict)

    @classmethod
    def of_this_process(
        cls, most: int = CONNECTIONS, flow: Callable[[asyncio.Transport], Flow] | None = None
    ) -> Bounds:
        """Half of the descriptors are for everything else."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(most if limit == resource.RLIM_INFINITY else min(most, limit // 2), flow=flow)


class SocketServer(uvicorn.Server):
    """Serves `app` until `end` is called. grace_s: seconds that running responses get then.

    greeted: a further socket, where each connection is told the bytes `greeting` before anything else.
    encrypted: further sockets, which speak TLS by the context `tls`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        grace_s: int,
        bounds: Bounds | None = None,
        greeted: socket.socket | None = None,
        greeting: bytes = b"",
        encrypted: Sequence[socket.socket] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._connection = functools.partial(_Connection, bounds or Bounds.of_this_process())
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=self._connection,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                proxy_headers=False,  # who asks is who connected, whatever a header says
                timeout_graceful_shutdown=grace_s,
            )
        )
        self._end = asyncio.Event()
        self._greeted = greeted
        self._greeting = greeting
        self._encrypted = encrypted
        self._tls = tls

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        create_server = functools.partial(asyncio.get_running_loop().create_server, backlog=self.config.backlog)
        if self._greeted is not None:
            greeter = functools.partial(self._make_connection, greeting=self._greeting)
            self.servers.append(await create_server(greeter, sock=self._greeted))
        for each in self._encrypted:
            server = await create_server(
                self._make_connection,
                sock=each,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=READER_S,  # within which a client has to take what waits for it
            )
            self.servers.append(server)

    def _make_connection(self, greeting: bytes = b"") -> asyncio.Protocol:
        return self._connection(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            greeting=greeting,
        )

    def end(self) -> None:
        self.should_exit = True
        self._end.set()

    async def main_loop(self) -> None:
        """uvicorn's own wakes up ten times a second, which is all that an idle process would do."""
        await self.on_tick(0)  # the default headers
        await self._end.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM has to end requests first, and the server after them: whoever runs this handles it."""
        yield


class _Connection(H11Protocol):
    """One client's connection. greeting: what it is told before it says anything."""

    flow: Flow

    def __init__(self, bounds: Bounds, *, greeting: bytes = b"", **options: Any) -> None:
        super().__init__(**options)
        self._bounds = bounds
        self._greeting = greeting
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        bounds = self._bounds
        flow = bounds.flow(transport) if bounds.flow else ReadOrLeave(transport, bounds.reader_s)
        self._gathering = _Gathering(transport, flow.nothing_follows)
        super().connection_made(self._gathering)  # type: ignore[arg-type]
        self.flow = flow
        flow.on_clear, flow.has_request = self._go_on, lambda: self._has_request
        self.app_state = {**self.app_state, "flow": self.flow}
        _send_at_once(transport)
        if self._greeting:
            transport.write(self._greeting)
        self._note_state()
        others = (each for each in self._bounds.waiting if each is not self)
        if len(self.connections) > self._bounds.connections and (longest := next(others, None)):
            longest.give_way()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.flow.closed(exc)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        if self.flow.is_behind and not self._has_request:
            self.flow.pause_reading()
            return
        is_full = len(self.connections) - len(self._bounds.waiting) >= self._bounds.connections
        self.app = _too_many if is_full else self.config.loaded_app
        super().handle_events()
        self._note_state()

    def on_response_complete(self) -> None:
        self._gathering.send()
        self.flow.nothing_follows()
        super().on_response_complete()
        if self.flow.is_behind:
            self._unset_keepalive_if_required()
        self._note_state()

    def give_way(self) -> None:
        """Make room for another at once; what is to be sent still is."""
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, RemoteError(ErrorCode.USAGE, f"this is not an HTTP request: {msg}"))

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()

    def _go_on(self) -> None:
        """The client has taken what lay here."""
        if not self._has_request and not self.transport.is_closing():
            self.flow.resume_reading()
            self.handle_events()
        self._note_state()

    def _note_state(self) -> None:
        if self.flow.is_behind or self._has_request:
            self._stop_waiting()
        elif self not in self._bounds.waiting and not self.transport.is_closing():
            self._bounds.waiting[self] = None
            self._timer = self.loop.call_later(self._bounds.head_s, self._took_too_long)

    def _stop_waiting(self) -> None:
        self._bounds.waiting.pop(self, None)
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _took_too_long(self) -> None:
        has_begun = bool(self.conn.trailing_data[0])
        if has_begun and self.conn.our_state is h11.IDLE:
            took = f"the head of the request did not come within {self._bounds.head_s:g} s"
            self._refuse(408, RemoteError(ErrorCode.USAGE, took))
        else:
            self.transport.close()

    def _refuse(self, status: int, error: RemoteError) -> None:
        """Answer what is no request, and hang up."""
        answer = JSONResponse(error.encode(), headers={"Connection": "close"})
        for event in (
            h11.Response(status_code=status, headers=answer.raw_headers),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _Gathering:
    """A transport that sends as one what is written within one turn of the event loop: uvicorn writes a head, each
    piece and an end by themselves, and a reader, which may be sshd, is woken by each. on_close: called at a close."""

    def __init__(self, transport: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._transport = transport
        self._on_close = on_close
        self._pieces: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self.send)
        self._pieces.append(data)
        self._size += len(data)
        if self._size > MOST_GATHERED:
            self.send()

    def close(self) -> None:
        self.send()
        self._transport.close()
        self._on_close()

    def abort(self) -> None:
        self._pieces.clear()
        self._transport.abort()

    def send(self) -> None:
        data, self._size = b"".join(self._pieces), 0
        self._pieces.clear()
        if data:
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    """Over TCP, a piece that follows another one waits 40 ms for its receipt unless this is said. asyncio says it for
    sockets that were made with TCP's number alone, and none that is accepted from a listener of Python's has that."""
    connection = transport.get_extra_info("socket")
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _too_many(scope: Any, receive: Any, send: Any) -> None:
    error = RemoteError(ErrorCode.ALL_SLOTS_BUSY, "too many requests are open", hint="try again in a moment")
    headers = {"Connection": "close", "Retry-After": "1"}
    await JSONResponse(error.encode(), status_code=503, headers=headers)(scope, receive, send)
