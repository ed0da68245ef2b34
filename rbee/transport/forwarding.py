"""Whether sshd opens channels to sockets: OpenSSH says the same when nobody listens, so here somebody listens."""

from __future__ import annotations

from rbee.base.errors import NodeError
from rbee.transport.connection import Connection, quote

#: Listens on a socket in a folder of its own until it is ended, half a minute at most.
_LISTEN = """
import signal, socket, sys
signal.alarm(30)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(sys.argv[1], flush=True)
while True:
    listener.accept()[0].close()
"""


async def forwarding_works(connection: Connection, python: str) -> bool | None:
    """None when there is no Python on the node that could listen. Leaves `connection.access` at what works.

    python: its path on the node, "" for none. Raises ConnectError.
    """
    if not python:
        return None
    connection.try_forwarding()
    async with connection.stream_script(_script(python)) as lines:
        socket = await anext(lines, b"")
        if not socket:
            return None
        try:
            stream = await connection.open_stream(socket.decode())
        except NodeError:
            return False
        await stream.aclose()
    return connection.access.transport == "forward"


def _script(python: str) -> str:
    # When the channel has gone, the shell's word on the end of its child would end the shell before its trap.
    return f"""exec 2>/dev/null; folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT; trap 'exit 1' TERM HUP
{quote(python)} -I -c {quote(_LISTEN)} "$folder/socket"
"""
