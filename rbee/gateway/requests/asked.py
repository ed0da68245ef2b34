"""The body of a request: read within bounds, parsed once, and changed only where something is added to it."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from rbee.gateway.requests.errors import Refusal, RefusedStatusError, wrong
from rbee_remote.protocol import RESUME_FIELD, ErrorCode, ProtocolError, parse_json
from rbee_remote.serving.body import read_body

#: Bytes of JSON that are worked on beside the event loop: a thread costs as much as some ten thousand bytes.
_LARGE = 128 * 1024
_LONGEST_NAME = 512
#: Seconds: bodies go with their requests, which take seconds.
_RETRY_AFTER_S = "5"
_TRUTHS = {"true": True, "false": False}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """content: as it came, without a byte order mark. body: the same, parsed. model: as the client names it, "" where
    it does not."""

    content: bytes
    body: dict[str, Any]
    model: str
    streams: bool


class Bodies:
    """What lies here of bodies, of all requests that are not over. held: bytes."""

    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def of_one(self, most: int) -> Iterator[Callable[[int], None]]:
        """While a request is not over: takes note of bytes that came of its body. most: for all of them.

        What is told raises RefusedStatusError 503 where they would be more.
        """
        own = 0

        def note(size: int) -> None:
            nonlocal own
            if self.held + size > most:
                told = f"the bodies of the requests that are open have {most} bytes, which is all that may be"
                headers = {"Connection": "close", "Retry-After": _RETRY_AFTER_S}
                raise RefusedStatusError(Refusal(503, ErrorCode.ALL_SLOTS_BUSY.value, told, headers=headers))
            self.held += size
            own += size

        try:
            yield note
        finally:
            self.held -= own


async def read(request: Request, most: int, note: Callable[[int], None]) -> Asked:
    """most: bytes. note: told of those that come, as of `Bodies`.

    Raises UsageError, RefusedStatusError 413 and 408 and what `note` does, ClientDisconnect.
    """

    async def receive() -> Message:
        message = await request.receive()
        note(len(message.get("body", b"")))
        return message

    try:
        content = await read_body(Request(request.scope, receive), most)
    except HTTPException as error:
        refusal = Refusal(error.status_code, ErrorCode.USAGE.value, error.detail, headers={"Connection": "close"})
        raise RefusedStatusError(refusal) from error
    return await beside(len(content), lambda: parsed(content))


def parsed(content: bytes) -> Asked:
    """Raises UsageError."""
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content:
        raise wrong("", "the body is empty; expected a JSON object")
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
    return Asked(content, body, model, _streams(body.get("stream")))


def _streams(said: Any) -> bool:
    """As workers read it, who take 1 and "true" for true. Raises UsageError."""
    value = _TRUTHS.get(said.lower(), said) if isinstance(said, str) else said
    if value is not None and not (isinstance(value, (bool, int, float)) and value in (0, 1)):
        raise wrong("stream", f"expected true or false, got {_kind(said)}")
    return bool(value)


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
