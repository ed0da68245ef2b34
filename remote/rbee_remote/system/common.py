"""What both real systems share: sockets and clocks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rbee_remote.system import identity, unix_http
from rbee_remote.system.gpu_users import gpu_pids

#: Sockets that are asked at once; a node has a handful.
_AT_ONCE = 32


class SharedSystem:
    """The part of a `System` that is the same on every machine."""

    def boot_id(self) -> str:
        return identity.boot_id()

    def host(self) -> str:
        return socket.gethostname()

    def uid(self) -> int:
        return os.geteuid()

    def clock(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def ask(self, sockets: Sequence[str], timeout_s: float) -> Mapping[str, dict[str, Any] | None]:
        if not sockets:
            return {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(sockets, pool.map(lambda path: _health(path, timeout_s), sockets), strict=True))

    def tell(self, socket: str, target: str, body: dict[str, Any], timeout_s: float) -> None:
        try:
            unix_http.request(Path(socket), "POST", target, body=body, timeout=timeout_s)
        except (OSError, ValueError):
            return  # it cannot be asked: the next step of the escalation does not depend on it

    def gpu_pids(self) -> frozenset[int]:
        return gpu_pids()


def _health(path: str, timeout_s: float) -> dict[str, Any] | None:
    try:
        status, body = unix_http.request(Path(path), "GET", "/v1/health", timeout=timeout_s)
    except (OSError, ValueError):
        return None
    return body if status == 200 and isinstance(body, dict) else None


def paths_below(text: str, roots: Sequence[str]) -> Iterator[str]:
    """What stands in `text` from each place on where it names one of the folders, or something in it."""
    for root in roots:
        at = text.find(root)
        while at >= 0:
            if text[at + len(root) : at + len(root) + 1] in ("", "/"):
                yield text[at:]
            at = text.find(root, at + 1)
