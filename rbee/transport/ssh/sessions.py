"""Sessions: channels in which the server runs a command, over as many connections as it makes necessary.

Rules
- sshd's MaxSessions bounds the sessions of one connection. A refused one is opened on another connection to the same
  server, which stays open for the next.
- A connection that opens not even its first session belongs to a server that opens none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncssh

from rbee.base.errors import NodeError
from rbee.transport.script import lost
from rbee_remote.protocol import ErrorCode

#: More connections to one node than this are a sign of sessions that do not end.
MOST_CONNECTIONS = 8

#: The login shell sees this and nothing else.
COMMAND = "exec /bin/sh"


class Sessions:
    """first: the connection that is there. another: opens a further one, which it also closes at the end."""

    def __init__(
        self,
        first: asyncssh.SSHClientConnection,
        another: Callable[[], Awaitable[asyncssh.SSHClientConnection]],
    ) -> None:
        self._connections = [first]
        self._another = another
        self._growing = asyncio.Lock()

    async def open(self) -> asyncssh.SSHClientProcess[bytes]:
        """A `/bin/sh`. Raises NodeError NODE_UNSUPPORTED where no session can be had, and ConnectError."""
        tried = len(self._connections)
        process, refused = await self._on(self._connections)
        if process is not None:
            return process
        async with self._growing:
            # Whoever waited finds the connection that was opened meanwhile.
            process, refused = await self._on(self._connections[tried:], refused)
            if process is None and len(self._connections) < MOST_CONNECTIONS:
                self._connections.append(await self._another())
                process, refused = await self._on(self._connections[-1:], refused)
        if process is None:
            raise NodeError(
                ErrorCode.NODE_UNSUPPORTED,
                "the node's sshd opens no more sessions",
                hint="set MaxSessions in its sshd_config to 10, which is the default",
                details={"connections": len(self._connections), "reason": refused.reason if refused else ""},
            ) from refused
        return process

    async def _on(
        self, connections: list[asyncssh.SSHClientConnection], refused: asyncssh.ChannelOpenError | None = None
    ) -> tuple[asyncssh.SSHClientProcess[bytes] | None, asyncssh.ChannelOpenError | None]:
        """(a session on the first connection that opens one, the last refusal)."""
        for connection in list(connections):
            try:
                return await connection.create_process(COMMAND, encoding=None), refused
            except asyncssh.ChannelOpenError as error:
                # asyncssh gives the server's own answer for a connection that is lost; its clean-up may be a turn away.
                await asyncio.sleep(0)
                if connection.is_closed():
                    if connection is self._connections[0]:
                        raise lost(error) from error
                    self._connections.remove(connection)
                refused = error
            except (asyncssh.Error, OSError) as error:
                raise lost(error) from error
        return None, refused
