"""Who did what on this node: JSON lines, appended only, each with the SHA-256 of the line before.

A line that is changed, removed or put in between breaks the chain at its successor.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from rbee_remote.hive.sanitize import sanitize

GENESIS = "0" * 64


class AuditLog:
    """The hive's, and as long as it holds its lock nobody else writes the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.exists() else b""
        self._previous = _digest_of_last_line(content)
        if content and not content.endswith(b"\n"):
            # A full disk cut the last line short: the next one starts on a line of its own.
            self._append(b"\n")

    def record(self, action: str, *, keeper: str, model: str = "", worker: str = "") -> None:
        """Append a line. Raises OSError when the disk does not take it: what cannot be recorded does not happen."""
        entry = {
            "time": round(time.time(), 3),
            "keeper": sanitize(keeper, limit=64),
            "action": action,
            "model": sanitize(model),
            "worker": sanitize(worker, limit=64),
            "previous": self._previous,
        }
        line = json.dumps(entry, ensure_ascii=False).encode()
        self._append(line + b"\n")
        self._previous = hashlib.sha256(line).hexdigest()

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def _digest_of_last_line(content: bytes) -> str:
    *_, last = content.removesuffix(b"\n").split(b"\n")
    return hashlib.sha256(last).hexdigest() if last else GENESIS
