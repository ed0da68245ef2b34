"""The body of a request: read within bounds, parsed once, and changed only where something is added to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

from rbee.gateway.requests.errors import Refusal, RefusedStatusError, wrong
from rbee_remote.protocol import RESUME_FIELD, ErrorCode, ProtocolError, parse_json
from rbee_remote.serving.body import read_body

#: Bytes of JSON that are worked on beside the event loop: a thread costs as much as some ten thousand bytes.
_LARGE = 128 * 1024
_LONGEST_NAME = 512

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """content: as it came. body: the same, parsed. model: as the client names it, "" where it does not."""

    content: bytes
    body: dict[str, Any]
    model: str
    streams: bool


async def read(request: Request, most: int) -> Asked:
    """most: bytes. Raises UsageError, RefusedStatusError 413 and 408, ClientDisconnect."""
    try:
        content = await read_body(request, most)
    except HTTPException as error:
        refusal = Refusal(error.status_code, ErrorCode.USAGE.value, error.detail, headers={"Connection": "close"})
        raise RefusedStatusError(refusal) from error
    return await beside(len(content), lambda: parsed(content))


def parsed(content: bytes) -> Asked:
    """Raises UsageError."""
    try:
        body = parse_json(content, unique=True)
    except ProtocolError as error:
        raise wrong("", f"the body is {error}") from error
    if not isinstance(body, dict):
        raise wrong("", f"the body must be a JSON object, not {_kind(body)}")
    model = "" if body.get("model") is None else body["model"]
    if not isinstance(model, str) or len(model) > _LONGEST_NAME:
        raise wrong("model", f"expected the name of a model, got {_kind(model)}")
    if RESUME_FIELD in body:
        raise wrong(RESUME_FIELD, "this field is for rbee itself")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise wrong("stream", f"expected true or false, got {_kind(stream)}")
    return Asked(content, body, model, stream is True)


async def written(asked: Asked, body: dict[str, Any]) -> bytes:
    """What is sent to a worker: what came, where nothing was added to it."""
    if body is asked.body:
        return asked.content
    return await beside(len(asked.content), lambda: json.dumps(body).encode("ascii"))


async def beside(size: int, work: Callable[[], T]) -> T:
    """Work on so many bytes, in a thread where that takes long enough for others to notice."""
    return await asyncio.to_thread(work) if size > _LARGE else work()


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    return names.get(type(value), "an object")
