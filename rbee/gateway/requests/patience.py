"""What a client hears, and how it is noticed that it left, while its request waits or is computed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Receive

from rbee.gateway.base.views import Waiting
from rbee.gateway.requests.answer import Answer

WAITING = "waiting"


class ClientGoneError(Exception):
    """The client closed its connection before its answer was over."""


def said_of(waiting: Waiting) -> str:
    """A comment's text."""
    if waiting.loading is not None:
        return f"loading {min(max(waiting.loading, 0.0), 1.0):.0%}"
    return f"place {waiting.place} in the queue"


@asynccontextmanager
async def company(
    answer: Answer, say: Callable[[], str] | None, *, patience_s: float, comment_s: float
) -> AsyncIterator[None]:
    """While inside, a client that streams hears comments. say: None for a client that does not.

    patience_s: seconds before the first one, which is the end of errors as statuses. Inside, nothing else may write.
    """
    if say is None:
        yield
        return

    async def tell() -> None:
        while True:
            await answer.comment(say())
            await asyncio.sleep(comment_s)

    telling: list[asyncio.Task[None]] = []  # none for most, whose answer comes before a first comment
    first_s = comment_s if answer.began else patience_s
    timer = asyncio.get_running_loop().call_later(first_s, lambda: telling.append(asyncio.create_task(tell())))
    try:
        yield
    finally:
        timer.cancel()
        for task in telling:
            task.cancel()
            await asyncio.wait([task])


async def while_connected(receive: Receive, answer: Answer, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, and stop at once when the client leaves. The request's body must have been read.

    Raises what the work raises, ClientGoneError.
    """
    task = asyncio.current_task()
    assert task is not None
    before, has_left = task.cancelling(), False

    def stop(watching: asyncio.Task[None]) -> None:
        nonlocal has_left
        has_left = not answer.is_over  # the server says the same of a client that has its answer
        if not watching.cancelled():
            watching.exception()  # seen
        if has_left:
            task.cancel()

    watching = asyncio.create_task(_gone(receive))
    watching.add_done_callback(stop)
    try:
        await work
    except BaseException as error:
        if has_left and (task.uncancel() <= before or not isinstance(error, asyncio.CancelledError)):
            raise ClientGoneError from error
        raise
    finally:
        watching.remove_done_callback(stop)
        watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
