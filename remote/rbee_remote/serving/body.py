"""The body of a request: bounded in size and in the time that it takes, and read as JSON or as a message."""

from __future__ import annotations

import json
from typing import Any, TypeVar

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from rbee_remote.protocol import ErrorCode, ProtocolError, RemoteError, decode

#: Seconds that a body may take however small it is, and bytes for which it gets a second more each: slower than any
#: line that SSH is used on.
BODY_S = 30.0
SLOWEST_BYTES_PER_S = 4096
#: Bytes at most: a context of a million tokens is about half of it.
MAX_BODY = 8 * 2**20

T = TypeVar("T")


async def read_body(request: Request, most: int) -> bytes:
    """All of it. most: bytes.

    Raises HTTPException: 413 where it is larger, 408 where it comes too slowly; ClientDisconnect where the client left
    before its end.
    """
    body = bytearray()
    too_large = HTTPException(413, f"the request is larger than {most} bytes")
    if request.headers.get("content-length", "").isdecimal() and int(request.headers["content-length"]) > most:
        raise too_large
    try:
        with anyio.fail_after(BODY_S) as scope:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
                scope.deadline += len(chunk) / SLOWEST_BYTES_PER_S
    except TimeoutError as error:
        raise HTTPException(
            408, f"only {len(body)} bytes of the request's body came within {BODY_S:g} s", {"Connection": "close"}
        ) from error
    return bytes(body)


async def read_json(request: Request, *, most: int = MAX_BODY, may_be_empty: bool = False) -> Any:
    """The body's JSON value, None for an empty body where that is allowed. most: bytes.

    Raises RemoteError: USAGE where it is not JSON, REQUEST_CANCELED where the client left before its end; HTTPException
    413 where it is too large, 408 where it comes too slowly.
    """
    try:
        body = await read_body(request, most)
    except ClientDisconnect as error:
        raise RemoteError(ErrorCode.REQUEST_CANCELED, "the client went away") from error
    if may_be_empty and not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(ErrorCode.USAGE, f"the body is not JSON: {error}") from error


async def read_message(request: Request, kind: type[T], default: T | None = None, *, most: int = MAX_BODY) -> T:
    """The body as a message. default: for an empty body. Raises what `read_json` does."""
    value = await read_json(request, most=most, may_be_empty=default is not None)
    if value is None and default is not None:
        return default
    try:
        return decode(kind, value)
    except ProtocolError as error:
        raise RemoteError(ErrorCode.USAGE, str(error)) from error
