"""One small request over a unix socket, blocking: the hive asks its workers, a starting hive asks the running one."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rbee_remote.system import unix_socket

_LIMIT = 1 << 20


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = unix_socket.connect(str(self._path), self.timeout)


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
