"""The body of a request, bounded in size and in the time that it takes."""

from __future__ import annotations

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request

#: Seconds that a body may take however small it is, and bytes for which it gets a second more each: slower than any
#: line that SSH is used on.
BODY_S = 30.0
SLOWEST_BYTES_PER_S = 4096


async def read_body(request: Request, most: int) -> bytes:
    """All of it. most: bytes.

    Raises HTTPException: 413 where it is larger, 408 where it comes too slowly; ClientDisconnect where the client left
    before its end.
    """
    body = bytearray()
    try:
        with anyio.fail_after(BODY_S) as scope:
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise HTTPException(413, f"the request is larger than {most} bytes")
                scope.deadline += len(chunk) / SLOWEST_BYTES_PER_S
    except TimeoutError as error:
        raise HTTPException(
            408, f"the request's body did not come: {len(body)} bytes of it after {BODY_S:g} s", {"Connection": "close"}
        ) from error
    return bytes(body)
