"""Text from outside, made fit for one line of a log."""

from __future__ import annotations

import logging

MAX_FIELD = 512


def sanitize(text: str, limit: int = MAX_FIELD) -> str:
    """`text` with control characters, line ends among them, written as escapes, and cut to `limit` characters."""
    escaped = "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in text[:limit]
    )
    return escaped if len(text) <= limit else f"{escaped[: limit - 1]}…"


class LineFormatter(logging.Formatter):
    """One record, one line; only a traceback, whose text is ours, spans several."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = sanitize(record.message, limit=4096)
        return super().formatMessage(record)


def configure_logging() -> None:
    """Send every logger to stderr, which is the log of a detached process."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
