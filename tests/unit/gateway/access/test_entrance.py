"""What is refused before the app sees it, and how long a request counts as open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from rbee.gateway.access.entrance import Entrance


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def status(entrance: Entrance, headers: Mapping[str, str], client: tuple[str, int] | None = ("::1", 1)) -> int:
    return int((await answer(entrance, headers, client))[0]["status"])


async def answer(
    entrance: Entrance, headers: Mapping[str, str], client: tuple[str, int] | None, path: str = "/"
) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "headers": raw, "client": client}
    await entrance(scope, None, send)  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:11435"}, 200),
        ({"host": "localhost:11435"}, 200),
        ({"host": "app.localhost"}, 200),
        ({"host": "[::1]:11435"}, 200),
        ({"host": "gpubox:11435"}, 200),
        ({"host": "evil.example:11435"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "[::1"}, 403),
        ({"host": "localhost:1", "origin": "https://evil.example"}, 403),
        ({"host": "localhost:1", "origin": "null"}, 403),
        ({"host": "localhost:1", "origin": "http://["}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "https://chat.example"}, 200),
    ],
)
async def test_without_keys_pages_of_other_sites_may_not_ask(headers: dict[str, str], expected: int) -> None:
    origins, hosts = ["https://chat.example"], ["GPUbox", "127.0.0.1"]
    assert await status(Entrance(app, needs_key=lambda: False, origins=origins, hosts=hosts), headers) == expected
    assert await status(Entrance(app, needs_key=lambda: True), headers) == 200
    assert await status(Entrance(app, needs_key=lambda: False), headers, client=None) == 200


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_a_refusal_is_in_the_callers_form_with_an_id_and_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    entrance = Entrance(app, needs_key=lambda: False)
    for _ in range(3):
        head, body = await answer(entrance, {"host": "evil.example", "x-request-id": "mine"}, ("::1", 1), path)
    error = json.loads(body["body"])
    assert (error.get("type") == "error") == (path == "/v1/messages")
    assert "'evil.example' needs an API key" in error["error"]["message"]
    assert (b"x-request-id", b"mine") in head["headers"]
    assert len(caplog.records) == 1  # the others follow, all in one


async def test_a_length_that_is_said_in_two_ways_is_refused() -> None:
    both = {"host": "localhost", "content-length": "2", "transfer-encoding": "chunked"}
    head, _ = await answer(Entrance(app, needs_key=lambda: True), both, None)
    assert head["status"] == 400
    assert (b"connection", b"close") in head["headers"]


async def test_a_request_is_open_until_it_ends_however_it_does() -> None:
    go_on = asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        raise ZeroDivisionError

    entrance = Entrance(waits, needs_key=lambda: True)
    await entrance.emptied()
    running = [asyncio.create_task(status(entrance, {})) for _ in range(2)]
    emptied = asyncio.create_task(entrance.emptied())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert entrance.open == 2
    running[0].cancel()
    await asyncio.wait([running[0]])
    assert (entrance.open, emptied.done()) == (1, False)
    go_on.set()
    with pytest.raises(ZeroDivisionError):
        await running[1]
    await emptied
    assert entrance.open == 0
