"""A client that leaves ends its request, whatever else ends it at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rbee.gateway.requests.answer import Answer
from rbee.gateway.requests.exchange import Exchange
from rbee.gateway.requests.patience import ClientGoneError, while_connected


class _Client:
    """Of ASGI: `leave` closes its connection."""

    def __init__(self) -> None:
        self.leave = asyncio.Event()
        self.answer = Answer(self._send, Exchange("1", "POST", "/v1/chat/completions"))

    async def receive(self) -> dict[str, Any]:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, _: Any) -> None:
        pass


async def _leaves_while(client: _Client, work: Any) -> None:
    asyncio.get_running_loop().call_soon(client.leave.set)
    await while_connected(client.receive, client.answer, work)


async def test_work_that_ends_with_an_error_of_its_own_because_the_client_left() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise ValueError("interrupted") from error

    with pytest.raises(ClientGoneError):
        await _leaves_while(_Client(), work())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_who_is_ended_at_the_same_time_hears_of_that() -> None:
    client, begun = _Client(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    asking = asyncio.create_task(while_connected(client.receive, client.answer, work()))
    await begun.wait()
    client.leave.set()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_deadline_is_told_from_a_client_that_left() -> None:
    client = _Client()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await while_connected(client.receive, client.answer, asyncio.Event().wait())  # type: ignore[arg-type]


async def test_a_client_that_has_its_answer_may_go_while_the_rest_is_done() -> None:
    client, done = _Client(), False

    async def work() -> None:
        nonlocal done
        client.answer.is_over = True
        client.leave.set()
        for _ in range(5):
            await asyncio.sleep(0)
        done = True

    await while_connected(client.receive, client.answer, work())
    assert done
