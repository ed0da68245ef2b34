"""Who did what on this node: the hive's audit log, in `log/` of its home.

Rules
- What starts or fetches something is recorded before it happens, or it does not happen.
- What ends or frees something is never kept from it by a full disk: such a line is written as soon as there is room.
- No prompt, answer, token or variable's value is ever in it.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from datetime import datetime, timezone
from typing import Any

from rbee_remote.protocol import ErrorCode, RemoteError, Served
from rbee_remote.protocol.audit_log import AuditLog
from rbee_remote.system.caller import ANYBODY, Caller
from rbee_remote.system.layout import Layout
from rbee_remote.system.sanitize import sanitize

#: Lines that are kept for a disk that has no room.
MOST_UNWRITTEN = 1000

_log = logging.getLogger(__name__)


class Audit:
    """The one of a hive. Any number of hives may share a home."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.audit_log
        self._file = AuditLog(layout.logs)
        self._host = os.uname().nodename
        self._unwritten: deque[dict[str, Any]] = deque(maxlen=MOST_UNWRITTEN)
        self._lost = 0

    def record(self, action: str, caller: Caller = ANYBODY, *, model: str = "", worker: str = "", **more: Any) -> None:
        """Append a line. Raises RemoteError, DISK_FULL above all: then what it tells of must not happen."""
        try:
            self._write_unwritten()
            self._append(self._entry(action, caller, model, worker, more))
        except OSError as error:
            raise RemoteError(
                ErrorCode.DISK_FULL if is_full(error) else ErrorCode.INTERNAL,
                f"the node's audit log cannot be written, so nothing was done: {error.strerror or error}",
                hint="free some space: `rbee gc` and `rbee models rm` remove what is not needed",
                details={"log": str(self._path)},
            ) from error

    def note(self, action: str, caller: Caller = ANYBODY, *, model: str = "", worker: str = "", **more: Any) -> None:
        """Append a line, later where the disk does not take it now."""
        if len(self._unwritten) == MOST_UNWRITTEN:
            self._lost += 1
        self._unwritten.append(self._entry(action, caller, model, worker, more))
        try:
            self._write_unwritten()
        except OSError as error:
            _log.error("%s is not in the audit log %s yet: %s", action, self._path, error.strerror or error)

    def served(self, served: Served, *, model: str, worker: str) -> None:
        """Note a request that a worker has ended."""
        self.note(
            "infer",
            Caller(sanitize(served.keeper, 64), sanitize(served.who, 128)),
            model=model,
            worker=worker,
            request=served.request_id,
            prompt_tokens=served.prompt_tokens,
            completion_tokens=served.completion_tokens,
            finish=served.finish,
        )

    def head(self) -> str:
        """The digest of the last line, for a keeper's record; "" where it cannot be had."""
        return self._file.head()

    def begin(self) -> None:
        """Note that the hive has started. Raises OSError where it is not for want of room that the log cannot be
        written: then it will not be possible later either."""
        self.note("hive.start", pid=os.getpid())
        if self._unwritten:
            try:
                self._write_unwritten()
            except OSError as error:
                if not is_full(error):
                    raise

    def _write_unwritten(self) -> None:
        while self._unwritten:
            if self._lost:
                self._append(self._entry("audit.lost", ANYBODY, "", "", {"lines": self._lost}))
                self._lost = 0
            self._append(self._unwritten[0])
            self._unwritten.popleft()

    def _append(self, entry: dict[str, Any]) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the user may have cleared the logs away
        self._file.append(entry)

    def _entry(self, action: str, caller: Caller, model: str, worker: str, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "keeper": caller.keeper,
            "who": caller.who,
            "host": self._host,
            "action": action,
            "model": sanitize(model),
            "worker": sanitize(worker, 64),
            **{name: sanitize(value) if isinstance(value, str) else value for name, value in more.items()},
        }


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
