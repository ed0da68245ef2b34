"""Sessions: channels in which the server runs a command, over as many connections as it makes necessary.

Rules
- sshd's MaxSessions bounds the sessions of one connection. A refused one is opened on another connection to the same
  server, which stays open for the next.
- A connection that has refused one is asked again once one of its sessions has ended, and not before: with two hundred
  streams that go by sessions, each would otherwise ask twenty connections first.
- A connection that opens not even its first session belongs to a server that opens none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncssh

from rbee.base.errors import NodeError
from rbee.transport.script import lost
from rbee_remote.protocol import ErrorCode

#: With sshd's default of ten sessions, so many are enough for three hundred streams; more are a sign of sessions that
#: do not end.
MOST_CONNECTIONS = 32
#: Bytes of a channel that are on their way unread; as many wait at its reader. A reader that has stopped reading costs
#: so much, and over a line of 50 ms a channel still takes 2.5 MB/s.
WINDOW = 2**17

#: The login shell sees this and nothing else.
COMMAND = "exec /bin/sh"


@dataclass(eq=False, slots=True)
class _Carrier:
    """A connection. full: it has refused a session, and none of its own has ended since."""

    connection: asyncssh.SSHClientConnection
    full: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """A `/bin/sh` on the node. ended: to be called once it is closed."""

    process: asyncssh.SSHClientProcess[bytes]
    ended: Callable[[], None]


class Sessions:
    """first: the connection that is there. another: opens a further one, which it also closes at the end."""

    def __init__(
        self,
        first: asyncssh.SSHClientConnection,
        another: Callable[[], Awaitable[asyncssh.SSHClientConnection]],
    ) -> None:
        self._carriers = [_Carrier(first)]
        self._another = another
        self._growing = asyncio.Lock()
        self._refused: asyncssh.ChannelOpenError | None = None

    async def open(self) -> Session:
        """Raises NodeError NODE_UNSUPPORTED where no session can be had, and ConnectError."""
        if session := await self._on_one_with_room():
            return session
        async with self._growing:
            # Whoever waited finds the connection that was opened meanwhile.
            session = await self._on_one_with_room()
            if session is None and len(self._carriers) < MOST_CONNECTIONS:
                self._carriers.append(_Carrier(await self._another()))
                session = await self._on_one_with_room()
        if session is None:
            raise NodeError(
                ErrorCode.NODE_UNSUPPORTED,
                "the node's sshd opens no more sessions",
                hint="set MaxSessions in its sshd_config to 10, which is the default",
                details={
                    "connections": len(self._carriers),
                    "reason": self._refused.reason if self._refused else "",
                },
            ) from self._refused
        return session

    async def _on_one_with_room(self) -> Session | None:
        for carrier in [carrier for carrier in self._carriers if not carrier.full]:
            if session := await self._on(carrier):
                return session
        return None

    async def _on(self, carrier: _Carrier) -> Session | None:
        """None where the server refuses, or a further connection is lost. Raises ConnectError."""
        connection = carrier.connection
        try:
            process = await connection.create_process(COMMAND, encoding=None, window=WINDOW)
        except asyncssh.ChannelOpenError as error:
            # asyncssh gives the server's own answer for a connection that is lost; its clean-up may be a turn away.
            await asyncio.sleep(0)
            if connection.is_closed():
                if carrier is self._carriers[0]:
                    raise lost(error) from error
                if carrier in self._carriers:
                    self._carriers.remove(carrier)
            carrier.full, self._refused = True, error
            return None
        except (asyncssh.Error, OSError) as error:
            raise lost(error) from error

        def ended() -> None:
            carrier.full = False

        return Session(process, ended)
