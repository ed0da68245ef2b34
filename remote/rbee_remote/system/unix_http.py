"""One small request over a unix socket, blocking: the hive asks its workers, a starting hive asks the running one."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbee_remote.system.peer import is_ours

_LIMIT = 1 << 20
#: Seconds between two tries to get into a listener's queue.
_FULL_QUEUE_S = 0.02


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        deadline = time.monotonic() + (self.timeout or 0.0)
        # A full queue of the listener is an error at once, whatever the timeout.
        while (code := self.sock.connect_ex(str(self._path))) == errno.EAGAIN and time.monotonic() < deadline:
            time.sleep(_FULL_QUEUE_S)
        if code:
            raise OSError(code, os.strerror(code))
        if not is_ours(self.sock):
            raise ConnectionRefusedError(errno.ECONNREFUSED, "somebody else listens there")


def request(
    path: Path,
    method: str,
    target: str,
    *,
    body: Any = None,
    timeout: float = 5.0,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Status and JSON body (None where there is none). Raises OSError, and ValueError for an answer that is no JSON."""
    connection = _UnixConnection(path, timeout)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, target, content, {"Content-Type": "application/json", **(headers or {})})
        with connection.getresponse() as response:
            data = response.read(_LIMIT)
    except http.client.HTTPException as error:
        raise ConnectionError(f"{path.name} does not speak HTTP: {error!r}") from error
    finally:
        connection.close()
    return response.status, json.loads(data) if data else None
