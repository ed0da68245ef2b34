"""log/gateway.log: a JSON object a line, for each request that is over and for what the gateway says of itself.

It lies in rbee's home like the other logs, whoever started the gateway, and is kept small: an older one beside it.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from rbee.gateway.base.interfaces import Ended

MAX_BYTES = 8 * 2**20
#: Characters of what a client chose that are kept.
LONGEST = 200
#: Seconds between two lines of the web server's that say the same.
REPEATS_S = 10.0
NAME = "gateway.log"

_log = logging.getLogger(__name__)


def line_of(request: Ended, time: datetime) -> dict[str, Any]:
    """What is written of a request. What it did not come to is left out."""
    worker, usage, client = request.worker, request.usage, request.client
    found: dict[str, Any] = {
        "time": iso(time),
        "kind": "request",
        "request": request.request_id,
        "traceparent": request.traceparent[:LONGEST],
        "key": client.key,
        "fingerprint": client.fingerprint,
        "address": client.address,
        "method": request.method[:LONGEST],
        "path": request.path[:LONGEST],
        "status": request.status,
        "finish": request.finish,
        "asked": request.asked[:LONGEST],
        "model": request.model[:LONGEST],
        "node": worker.node if worker else "",
        "worker": worker.id if worker else "",
        "failovers": request.failovers,
        "seconds": round(request.seconds, 4),
        "first_s": None if request.first_s is None else round(request.first_s, 4),
        "queue_s": round(request.queue_s, 4) if worker else None,
    }
    if usage:
        found |= {"tokens_in": usage.prompt, "tokens_cached": usage.cached, "tokens_out": usage.completion}
    return {name: value for name, value in found.items() if value not in ("", None)}


def iso(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class RequestLog(logging.handlers.RotatingFileHandler):
    """The file. Never raises OSError: what cannot be written is left out, and said once until it can be again."""

    def __init__(self, folder: Path, name: str = NAME) -> None:
        """Raises OSError where the file cannot be opened."""
        super().__init__(folder / name, maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8")
        self.setFormatter(_JsonFormatter())
        self._failed = False

    def write(self, line: dict[str, Any]) -> None:
        self.handle(logging.makeLogRecord({"msg": line}))

    def emit(self, record: logging.LogRecord) -> None:
        failed_before, self._failed = self._failed, False
        super().emit(record)
        if failed_before and not self._failed:
            _log.warning("%s is written again", self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:
        del record
        self._failed = True

    def _open(self) -> IO[str]:  # type: ignore[override]
        def opener(path: str, flags: int) -> int:
            return os.open(path, flags | os.O_CLOEXEC, 0o600)

        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=opener)


class _JsonFormatter(logging.Formatter):
    """A dict as it is; what a logger was told with its level and name."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, dict):
            return json.dumps(record.msg)
        line = {
            "time": iso(datetime.fromtimestamp(record.created, UTC)),
            "kind": "log",
            "level": record.levelname.lower(),
            "from": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _News(logging.Filter):
    """Of what uvicorn says of connections, each text once in REPEATS_S: a stranger can have it said without end.

    Not at all what it says of a stream that failed: the gateway cuts it off, so that it has no clean end, and has
    logged the request with its error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        text = str(record.msg)
        if text == "ASGI callable returned without completing response.":
            return False
        last = self._said.get(text, -math.inf)
        if record.created - last < REPEATS_S and not record.exc_info:
            return False
        self._said[text] = record.created
        return True


@contextmanager
def logging_to(handler: logging.Handler) -> Iterator[None]:
    """What rbee's own modules say from INFO on, and others from WARNING on, goes to the handler, too."""
    root, ours, server = logging.getLogger(), logging.getLogger("rbee"), logging.getLogger("uvicorn.error")
    level, news = ours.level, _News()
    root.addHandler(handler)
    server.addFilter(news)
    ours.setLevel(min(logging.INFO, ours.getEffectiveLevel()))
    try:
        yield
    finally:
        root.removeHandler(handler)
        server.removeFilter(news)
        ours.setLevel(level)
