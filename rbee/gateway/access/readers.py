"""Clients that read more slowly than their answers come: what lies here for them, and how long they have to take it.

Rules
- What a client has not taken lies in its connection's own buffer, where each piece is put anyway: a client that keeps
  up costs nothing.
- An answer goes on while less than `each` lies here for its client, and less than `together` for all that are behind:
  the worker is done with it when it has computed it. The bounds are looked at before each piece, so that one piece more
  may lie here. Up to BEHIND bytes a client is not behind, and always has room.
- Where there is no room, the answer waits for its client, and the worker with it: the client has `no_room_s` for each
  step. Where the whole answer lies here it has `reader_s`. Who takes less than SLOWEST_BYTES_PER_S then is cut off.
- That is so of every answer, the gateway's own and those that failed too: nothing lies here without a limit in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

from rbee_remote.serving.body import SLOWEST_BYTES_PER_S
from rbee_remote.serving.socket_server import READER_S, Flow

#: Bytes that wait for a client before it counts as behind: uvicorn's own mark.
BEHIND = 2**16
#: Bytes for one client: a long answer, 32k tokens, is 10 MB of events with some 300 bytes for each token.
EACH = 16 * 2**20
#: Bytes for all clients that are behind: some 25 of such answers, which a machine that runs a gateway can spare.
TOGETHER = 256 * 2**20
#: Seconds for a step of a client for whom there is no room, while a worker waits.
NO_ROOM_S = 30.0
#: Seconds between two looks at a client that is behind.
_LOOK_S = 0.25


@dataclass(slots=True)
class Room:
    """For all clients. held: bytes that lie here for those that are behind, as far as it was looked at."""

    each: int = EACH
    together: int = TOGETHER
    no_room_s: float = NO_ROOM_S
    reader_s: float = READER_S
    held: int = field(default=0, init=False)

    def flow(self, transport: asyncio.Transport) -> Reader:
        """For a connection."""
        return Reader(transport, self)


class Reader(Flow):
    """One client."""

    def __init__(self, transport: asyncio.Transport, room: Room) -> None:
        super().__init__(transport)
        transport.set_write_buffer_limits(high=BEHIND, low=0)
        self._room = room
        #: asyncio tells nobody in public what lies below TLS; the tests run with it.
        self._tls: Any = getattr(transport, "_ssl_protocol", None)
        self._counted = 0
        self._is_gone = False
        self._is_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None

    @property
    def is_behind(self) -> bool:
        return self.write_paused or self._below_tls > 0

    async def drain(self) -> None:
        """Return once there is room, or nobody to make it for: what uvicorn waits for before each piece for a client
        that is behind."""
        await self._wait(self._has_room, self._room.no_room_s)

    async def has_all(self) -> bool:
        """Once a client that is behind has taken all; False for one that went away before, or was cut off."""
        await self._wait(lambda: False, self._room.reader_s)
        return not self.was_cut_off and not self._is_lost

    def nothing_follows(self) -> None:
        self._count()
        self._judge_later()
        if self.is_behind and not self.write_paused and not self._timer:  # nobody else says when TLS is through
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._clear)

    def resume_writing(self) -> None:
        FlowControl.resume_writing(self)
        self._clear()

    def cut_off(self) -> None:
        super().cut_off()
        self.closed(None)

    def closed(self, error: Exception | None) -> None:
        self._is_lost = self._is_lost or (error is not None and (self.write_paused or self._counted > 0))
        self._is_gone = True
        self._count()
        self._judge_later()

    def _clear(self) -> None:
        """Say so, as soon as TLS is through, too."""
        self._count()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self.is_behind and not self._is_gone:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._clear)
        else:
            self.on_clear()

    def _judge_later(self) -> None:
        """What lies here now, in `reader_s`."""
        if self._limit:
            self._limit.cancel()
            self._limit = None
        if self._counted:
            judge, untaken = self._judge, self._untaken()
            self._limit = asyncio.get_running_loop().call_later(self._room.reader_s, judge, untaken)

    def _judge(self, before: int) -> None:
        """Cut off a client that has taken too little of what lies here, while nothing was added."""
        self._count()
        if self.has_request() or not self._counted:
            return
        if before - self._untaken() < SLOWEST_BYTES_PER_S * self._room.reader_s:
            self.cut_off()
        else:
            self._judge_later()

    def _has_room(self) -> bool:
        return self._counted < self._room.each and self._room.held < self._room.together

    async def _wait(self, is_over: Callable[[], bool], patience_s: float) -> None:
        """Until it is over, the client has all, or it was cut off."""
        self._count()
        if is_over() or not self.is_behind:
            return
        untaken, limit = self._untaken(), self._now() + patience_s
        while self.is_behind and not self._is_gone:
            await self._look()
            if is_over():
                return
            if self._now() >= limit:
                before, untaken, limit = untaken, self._untaken(), self._now() + patience_s
                if before - untaken < SLOWEST_BYTES_PER_S * patience_s:
                    self.cut_off()
                    return

    async def _look(self) -> None:
        """A moment later, or at once where the client has taken all."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await (super().drain() if self.write_paused else asyncio.sleep(_LOOK_S))
        self._count()

    def _count(self) -> None:
        waits = 0
        if not self._is_gone:  # the transport of one that is closed twice does not know any more
            of_tls = self._tls and self._tls._get_write_buffer_size()
            waits = of_tls + self._below_tls if self._tls else self._transport.get_write_buffer_size()
        self._room.held += waits - self._counted
        self._counted = waits

    @property
    def _below_tls(self) -> int:
        """Bytes that TLS has encrypted and handed down, which asyncio does not count as its own; 0 without TLS."""
        below = self._tls and self._tls._transport
        return below.get_write_buffer_size() if below else 0

    def _untaken(self) -> int:
        """Bytes that the client's machine has not taken, those included that lie in this one's kernel: that takes them
        in lumps of megabytes."""
        return self._counted + _in_kernel(self._transport)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _in_kernel(transport: asyncio.Transport) -> int:
    """Bytes that were handed to the kernel and not yet to the other side; 0 where it does not say."""
    connection = transport.get_extra_info("socket")
    if connection is None:  # TLS that is over
        return 0
    try:
        said = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", said)[0])
