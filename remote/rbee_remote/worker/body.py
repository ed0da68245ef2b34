"""Reading a request's body, bounded."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from rbee_remote.protocol import ErrorCode, RemoteError

#: Bytes at most: a context of a million tokens is about half of it.
MAX_BODY = 8 * 2**20


async def read_json(request: Request, *, may_be_empty: bool = False) -> Any:
    """The body's JSON value, None for an empty body where that is allowed.

    Raises RemoteError: USAGE where it is no JSON, REQUEST_CANCELED where the client left before its end; HTTPException
    413 where it is too large.
    """
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"the request is larger than {MAX_BODY} bytes")
    except ClientDisconnect as error:
        raise RemoteError(ErrorCode.REQUEST_CANCELED, "the client went away") from error
    if may_be_empty and not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(ErrorCode.USAGE, f"the body is not JSON: {error}") from error
