"""Text from outside, made fit for one line of a log: without control characters, and without what addresses keep to
themselves."""

from __future__ import annotations

import logging
import re
from typing import Any

MAX_FIELD = 512

#: A user and password before the host, and a query: where a presigned address has its signature.
_USER = re.compile(r"(\bhttps?://)[^\s/?#@]*@", re.IGNORECASE)
_QUERY = re.compile(r"(\bhttps?://[^\s?#'\"<>]*)\?[^\s'\"<>]*", re.IGNORECASE)


def redact(text: str) -> str:
    """`text` without the passwords and queries of the addresses in it."""
    return _QUERY.sub(r"\1?…", _USER.sub(r"\1", text))


def sanitize(text: str, limit: int = MAX_FIELD) -> str:
    """`text`, redacted, with control characters, line ends among them, written as escapes, and cut to `limit`
    characters."""
    text = redact(text)
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text[:limit]
    )
    return escaped if len(text) <= limit else f"{escaped[: limit - 1]}…"


class LineFormatter(logging.Formatter):
    """One record, one line; only a traceback, whose text is ours but for the error's own, spans several."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = sanitize(record.message, limit=4096)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return redact(super().formatException(ei))


def configure_logging() -> None:
    """Send every logger to stderr, which is the log of a detached process."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
