"""Reading the JSON of a request."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.serving.body import read_body

#: Bytes at most: a context of a million tokens is about half of it.
MAX_BODY = 8 * 2**20


async def read_json(request: Request, *, may_be_empty: bool = False) -> Any:
    """The body's JSON value, None for an empty body where that is allowed.

    Raises RemoteError: USAGE where it is no JSON, REQUEST_CANCELED where the client left before its end; HTTPException
    413 where it is too large, 408 where it comes too slowly.
    """
    try:
        body = await read_body(request, MAX_BODY)
    except ClientDisconnect as error:
        raise RemoteError(ErrorCode.REQUEST_CANCELED, "the client went away") from error
    if may_be_empty and not body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RemoteError(ErrorCode.USAGE, f"the body is not JSON: {error}") from error
