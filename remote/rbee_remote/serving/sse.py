"""Server-sent events: their lines, and the response that consists of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store"}
#: Seconds between two comments while nothing else is to say.
HEARTBEAT_S = 3.0
WAITING = ": waiting\n\n"


def event(name: str, data: Any, number: int | None = None) -> str:
    """number: the event's id, None for none."""
    numbered = "" if number is None else f"id: {number}\n"
    return f"event: {name}\n{numbered}data: {json.dumps(data)}\n\n"


def data(value: Any) -> str:
    """An event without a name, as OpenAI's API has them."""
    return f"data: {json.dumps(value)}\n\n"


class EventStream(StreamingResponse):
    def __init__(self, lines: AsyncIterator[str]) -> None:
        super().__init__(lines, media_type=MEDIA_TYPE, headers=HEADERS)
