"""Waiting for a client that goes away."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import Receive


async def when_gone(receive: Receive, cancel: Callable[[], object]) -> None:
    """Call `cancel` once the client has closed its connection. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    cancel()
