"""Whose process listens at a unix socket: asked by the keeper for this machine, and by what runs on a node."""

from __future__ import annotations

import os
import socket
import struct

_CREDENTIALS = struct.Struct("3i")


def is_ours(connection: socket.socket) -> bool:
    """Whether the listener belongs to this user; True too where the system does not tell (it does on Linux).

    connection: connected. Raises OSError.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return bool(uid == os.geteuid())
