"""What a `rbee serve` of the same home says of its requests, asked over the link: a socket of this user's on this
machine, which needs no key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rbee.link.client import ask
from rbee.top.model import GatewayRow, waiting_of

#: Seconds between two questions, and for an answer.
INTERVAL_S = 1.0
_WITHIN_S = 0.5


async def gateway() -> GatewayRow | None:
    """None where none runs, or it does not answer."""
    answer = await asyncio.to_thread(ask, "status", _WITHIN_S)
    said = (answer or {}).get("status")
    return waiting_of(said.get("serving")) if isinstance(said, dict) else None


async def follow(heard: Callable[[GatewayRow | None], None]) -> None:
    """Until canceled."""
    while True:
        heard(await gateway())
        await asyncio.sleep(INTERVAL_S)
