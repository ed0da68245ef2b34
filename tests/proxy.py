"""A TCP proxy that spoils what passes through it: a network that cuts, stalls and delays, to put before any server.

    async with ChaosProxy(("127.0.0.1", port), lambda number: Fault("cut", after_bytes=20_000)) as proxy:
        … connect to ("127.0.0.1", proxy.port)

Each connection gets the fault of its number, from 0; `strike` has one happen to those that are open now.
`in_thread` runs a proxy for tests without an event loop.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Kind = Literal["none", "cut", "close", "stall", "half-open"]

_CHUNK = 2**16
#: How long the server's side of a stalled connection outlives the client's: it learns of the end late, if ever.
_LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one connection, once `after_bytes` came from the server or `after_s` have passed since it began.

    kind: "cut" resets it on both sides in the middle of whatever is under way; "close" ends it in order; "stall" lets
    nothing pass any more and keeps it open; "half-open" resets the server's side, and the client's stays open, silent.
    latency_s: by which everything is late, each way. chunk: bytes passed on at once, at most; small ones make both ends
    read and write in pieces. buffer: of the proxy's sockets, in bytes; None for the system's.
    """

    kind: Kind = "none"
    after_bytes: int | None = None
    after_s: float | None = None
    latency_s: float = 0.0
    chunk: int = _CHUNK
    buffer: int | None = None


def random_fault(generator: random.Random, *, bytes_at_most: int, seconds_at_most: float) -> Fault:
    """Any fault, somewhere up to these points."""
    by_bytes = generator.random() < 0.5
    return Fault(
        kind=generator.choice(("cut", "close", "stall", "half-open")),
        after_bytes=generator.randrange(1, bytes_at_most) if by_bytes else None,
        after_s=None if by_bytes else generator.uniform(0.0, seconds_at_most),
        latency_s=generator.choice((0.0, 0.0, generator.uniform(0.0, 0.02))),
        chunk=generator.choice((_CHUNK, generator.randrange(100, 2000))),
        buffer=generator.choice((None, 4096)),
    )


@dataclass(eq=False)
class _Side:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Close it with an RST instead of a FIN."""
        held: socket.socket | None = self.writer.get_extra_info("socket")
        if held is not None and not self.writer.is_closing():
            held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def shrink(self, buffer: int) -> None:
        held: socket.socket = self.writer.get_extra_info("socket")
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            held.setsockopt(socket.SOL_SOCKET, option, buffer)


@dataclass(eq=False)
class _Passage:
    """One connection on its way through."""

    fault: Fault
    client: _Side
    server: _Side
    stalled: bool = False
    _passed: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until it is over, in whichever way. Canceled, both sides are reset."""
        pumps = [self._forth(), self._back()]
        if self.fault.after_s is not None:
            pumps.append(self._strike_later(self.fault.after_s))
        self._tasks = {asyncio.create_task(pump) for pump in pumps}
        try:
            await asyncio.gather(*self._tasks)
        except OSError:  # one side has reset it: so does the other
            pass
        finally:
            for task in self._tasks:
                task.cancel()
            self.client.reset()  # before anything is awaited: this may be canceled as well
            self.server.reset()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def strike(self, kind: Kind) -> None:
        match kind:
            case "cut":
                self.client.reset()
                self.server.reset()
            case "close":
                self.client.writer.close()
                self.server.writer.close()
            case "stall":
                self.stalled = True
            case "half-open":
                self.stalled = True
                self.server.reset()

    async def _forth(self) -> None:
        while data := await self.client.reader.read(self.fault.chunk):
            await asyncio.sleep(self.fault.latency_s)
            if not (self.stalled or self.server.writer.is_closing()):  # what is said into a dead connection is lost
                self.server.writer.write(data)
                await self.server.writer.drain()
        if self.stalled:
            await asyncio.sleep(_LINGER_S)
        self.server.writer.close()

    async def _back(self) -> None:
        while data := await self._read_from_server():
            await asyncio.sleep(self.fault.latency_s)
            while self.stalled:  # until the client gives up, which ends `_forth`
                await asyncio.sleep(0.05)
                if self.server.writer.is_closing():
                    return
            if self.client.writer.is_closing():
                return
            self.client.writer.write(data)
            await self.client.writer.drain()
            self._passed += len(data)
            if self._passed == self.fault.after_bytes:
                self.strike(self.fault.kind)
        if not self.stalled:
            self.client.writer.close()

    async def _read_from_server(self) -> bytes:
        left = _CHUNK if self.fault.after_bytes is None else self.fault.after_bytes - self._passed
        return await self.server.reader.read(min(self.fault.chunk, left if left > 0 else _CHUNK))

    async def _strike_later(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        self.strike(self.fault.kind)


class ChaosProxy:
    """Listens on a loopback port and passes on to `target`, a host and a port; it can be changed for later connections.

    faults: what happens to the connection of each number. connections: how many came so far.
    """

    def __init__(self, target: tuple[str, int], faults: Callable[[int], Fault] = lambda _: Fault()) -> None:
        self.target = target
        self._faults = faults
        self._server: asyncio.Server | None = None
        self._passages: dict[asyncio.Task[Any], _Passage] = {}
        self._handlers: set[asyncio.Task[Any]] = set()
        self.connections = 0
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for _turn in range(5):  # who was accepted in this moment gets a handler within as many turns of the loop
            await asyncio.sleep(0)
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        await self._server.wait_closed()

    def lead_to(self, target: tuple[str, int], faults: Callable[[int], Fault] = lambda _: Fault()) -> None:
        self.target, self._faults, self.connections = target, faults, 0

    def strike(self, kind: Kind) -> None:
        """Have this happen to every connection that is open."""
        for passage in self._passages.values():
            passage.strike(kind)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        fault = self._faults(self.connections)
        self.connections += 1
        client = _Side(reader, writer)
        try:
            server = _Side(*await asyncio.open_connection(*self.target))
        except (OSError, asyncio.CancelledError):
            client.reset()
            return
        if fault.buffer is not None:
            with suppress(OSError):  # one of them is closed already, which `run` will see
                client.shrink(fault.buffer)
                server.shrink(fault.buffer)
        self._passages[task] = passage = _Passage(fault, client, server)
        try:
            with suppress(asyncio.CancelledError):  # the proxy ends
                await passage.run()
        finally:
            del self._passages[task]


class ThreadedProxy:
    """A `ChaosProxy` whose event loop runs in another thread."""

    def __init__(self, proxy: ChaosProxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy = proxy
        self._loop = loop
        self.port = proxy.port

    @property
    def connections(self) -> int:
        return self._proxy.connections

    def strike(self, kind: Kind) -> None:
        """Returns once it has happened."""

        async def struck() -> None:
            self._proxy.strike(kind)

        asyncio.run_coroutine_threadsafe(struck(), self._loop).result(10)

    def lead_to(self, target: tuple[str, int], faults: Callable[[int], Fault] = lambda _: Fault()) -> None:
        """Where connections go from now on, and what happens to them; the next one is number 0 again."""
        self._proxy.lead_to(target, faults)


@contextmanager
def in_thread(target: tuple[str, int], faults: Callable[[int], Fault] = lambda _: Fault()) -> Iterator[ThreadedProxy]:
    """Run a proxy until the context ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()
    proxy = ChaosProxy(target, faults)

    def wait_for(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    try:
        wait_for(proxy.__aenter__())
        try:
            yield ThreadedProxy(proxy, loop)
        finally:
            wait_for(proxy.__aexit__())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
