"""Connecting to a unix socket, and to whom: a path alone does not tell, because its folder may have been cleaned away.

Standard library alone: `pipe` has to be there at once.
"""

from __future__ import annotations

import errno
import os
import socket
import time

from rbee_remote.protocol.peer import is_ours

#: Seconds between two tries to get into a listener's queue.
_FULL_QUEUE_S = 0.02


def connect(path: str, timeout_s: float | None = None) -> socket.socket:
    """A connection to whoever listens at `path` as this user. timeout_s: also that of what is done with it; None for
    none. Raises OSError, ConnectionRefusedError where somebody else listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        deadline = time.monotonic() + (timeout_s or 0.0)
        # With a timeout, a full queue of the listener is an error at once, however long that is.
        while (code := connection.connect_ex(path)) == errno.EAGAIN and time.monotonic() < deadline:
            time.sleep(_FULL_QUEUE_S)
        if code:
            raise OSError(code, os.strerror(code))
        if not is_ours(connection):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "another user's process listens there")
    except BaseException:
        connection.close()
        raise
    return connection


def listens(path: str) -> bool:
    """Whether somebody has this socket open, whether or not they answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)  # nothing is waited for: a full queue says enough
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # its queue is full, or it is not ours to connect to: somebody is there
            return True
    return True
