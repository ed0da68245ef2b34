"""The digests of a request's prompt, which go with it to where its memory is."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from rbee_remote.protocol.prompt_digest import prompt_digests

#: Bytes of a body up to which its digests are made on the event loop: half a millisecond.
SMALL = 64 * 2**10


async def digests_of(request: Request, body: Any) -> tuple[str, ...]:
    """body: the request's, as JSON values; its length is in the header, or taken for large."""
    length = request.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) <= SMALL:
        return prompt_digests(body)
    return await asyncio.to_thread(prompt_digests, body)
