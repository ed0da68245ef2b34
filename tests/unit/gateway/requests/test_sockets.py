"""The app in its server, over loopback: what only real connections show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import httpx2
import openai
import pytest
from starlette.types import ASGIApp

from rbee.base.errors import NodeError
from rbee.gateway.requests.app import make_app
from rbee.gateway.requests.parts import AppSettings
from rbee.node.socket_http import HungUpError, SilenceError
from rbee_remote.protocol import ErrorCode
from rbee_remote.serving import body
from rbee_remote.serving.socket_server import Bounds, SocketServer
from tests.doubles.gateway import (
    MODEL,
    Reply,
    ScriptedWorker,
    chat,
    chat_script,
    plain,
    rendered,
    resuming,
    setting,
)
from tests.patience import PATIENCE_S

STEPS = chat_script(["one ", "two ", "three "])
HALF = len(rendered(STEPS)) // 2
JSON = {"content-type": "application/json"}
LOST = NodeError(ErrorCode.WORKER_GONE, "nobody listens there")


@contextlib.asynccontextmanager
async def served(app: ASGIApp, bounds: Bounds | None = None) -> AsyncIterator[int]:
    """Its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = SocketServer(app, grace_s=1, bounds=bounds)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.end()
        await task
        listener.close()


@contextlib.asynccontextmanager
async def client_of(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        served(app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        yield client


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


async def test_the_openai_client_streams_over_a_failover_and_asks_whole_answers() -> None:
    whole = {
        "id": "c", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}],
    }  # fmt: skip
    dead = ScriptedWorker(
        Reply(resuming(STEPS), breaks_at=HALF, error=SilenceError("POST", 10)), Reply(b"", before=LOST)
    )
    alive = ScriptedWorker(Reply(resuming(STEPS)), Reply(json.dumps(whole).encode(), headers=JSON))
    world = setting(a=dead, b=alive)
    async with served(make_app(world.parts)) as port:
        http = httpx2.AsyncClient()
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, http_client=http
        ) as client:
            messages: Any = [{"role": "user", "content": "Hello"}]
            stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
            deltas = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            answer = await client.chat.completions.create(model=MODEL, messages=messages)
            with pytest.raises(openai.NotFoundError, match="did you mean") as caught:
                await client.chat.completions.create(model="unknown", messages=messages)
            models = [model.id async for model in client.models.list()]
    assert "".join(deltas) == "two 1.0three 2.0three 2.1"
    assert answer.choices[0].message.content == "Hi"
    assert caught.value.code == "model_not_found"
    assert models == [MODEL]


async def test_the_openai_client_sees_that_an_answer_broke() -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=HALF, error=LOST))
    async with served(make_app(setting(a=dead).parts)) as port:
        http = httpx2.AsyncClient()
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, http_client=http
        ) as client:
            messages: Any = [{"role": "user", "content": "Hello"}]
            stream = await client.chat.completions.create(model=MODEL, messages=messages, stream=True)
            with pytest.raises(openai.APIError, match="the answer is not complete"):
                async for _ in stream:
                    pass


async def test_a_client_that_knows_nothing_of_errors_sees_a_broken_connection() -> None:
    dead = ScriptedWorker(Reply(resuming(STEPS), breaks_at=HALF, error=LOST))
    async with client_of(make_app(setting(a=dead).parts)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/chat/completions", json=chat())


async def test_a_client_that_closes_its_connection_ends_the_exchange_and_nothing_else() -> None:
    hold = asyncio.Event()
    worker = ScriptedWorker(Reply(resuming(STEPS), cuts=[500, 1], holds=hold))
    world = setting(a=worker)
    async with client_of(make_app(world.parts)) as client:
        async with client.stream("POST", "/v1/chat/completions", json=chat()) as response:
            assert await anext(response.aiter_bytes())
            assert worker.open == 1
        await until(lambda: worker.open == 0)
        hold.set()
        assert (await client.post("/v1/chat/completions", json=chat())).content == plain(STEPS)
    assert [each.finish for each in world.recorder.requests] == ["REQUEST_CANCELED", ""]
    assert world.dispatcher.open == 0


async def test_bodies_in_chunks_and_too_large_ones() -> None:
    worker = ScriptedWorker(Reply(b"{}", headers=JSON))
    world = setting(a=worker, settings=AppSettings(most_body=100_000))

    async def pieces(size: int) -> AsyncIterator[bytes]:
        yield b'{"model": "%s", "x": "' % MODEL.encode()
        for _ in range(size // 1000):
            yield b"x" * 1000
        yield b'"}'

    async with client_of(make_app(world.parts)) as client:
        assert (await client.post("/v1/x", content=pieces(90_000))).status_code == 200
        for content in (pieces(10_000_000), b"x" * 200_000):
            with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # it may still be writing
                response = await client.post("/v1/x", content=content)
                assert response.status_code == 413
                assert response.headers["connection"] == "close"
        assert (await client.post("/v1/x", content=pieces(10))).status_code == 200
    assert len(worker.requests) == 2
    assert [each.status for each in world.recorder.requests].count(413) == 2


async def test_a_body_that_comes_too_slowly_or_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.05)
    world = setting(a=ScriptedWorker(Reply(b"{}", headers=JSON)))
    async with served(make_app(world.parts)) as port:
        begun = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{"
        answer = await raw(port, begun)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        await until(lambda: world.gate.open_requests)
        writer.close()
        await until(lambda: len(world.recorder.requests) == 2)
    assert answer.startswith(b"HTTP/1.1 408")
    assert world.recorder.requests[1].finish in ("REQUEST_CANCELED", "USAGE")  # whichever is noticed first
    assert world.gate.open_requests == 0


async def test_the_anthropic_client_reads_errors() -> None:
    import anthropic  # seconds, which every process of the tests would take when it collects them

    world = setting(a=ScriptedWorker(Reply(b'{"error": {"message": "bad"}}', status=400, headers=JSON)), keys=["k"])
    async with served(make_app(world.parts)) as port:
        address = f"http://127.0.0.1:{port}"
        ask: Any = {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
        async with anthropic.AsyncAnthropic(base_url=address, api_key="k", max_retries=0) as client:
            with pytest.raises(anthropic.NotFoundError, match="did you mean"):
                await client.messages.create(model="unknown", **ask)
            with pytest.raises(anthropic.BadRequestError, match="bad"):
                await client.messages.create(model=MODEL, **ask)
        async with anthropic.AsyncAnthropic(base_url=address, api_key="wrong", max_retries=0) as client:
            with pytest.raises(anthropic.AuthenticationError):
                await client.messages.create(model=MODEL, **ask)


async def raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 20_000,
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        b"POST /" + b"x" * 100_000,
        b"\x16\x03\x01\x02\x00",
        b"POST http://evil/v1/admin/shutdown HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/%61dmin/shutdown HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/admin%2Fshutdown HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_what_is_no_request_reaches_no_worker(head: bytes) -> None:
    worker = ScriptedWorker(Reply(b"{}", headers=JSON))
    async with served(make_app(setting(a=worker).parts), Bounds(head_s=0.2)) as port:
        answer = await raw(port, head)
    assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404", b"HTTP/1.1 408", b"HTTP/1.1 501", b"")
    assert worker.requests == []


async def test_pieces_do_not_wait_for_receipts() -> None:
    """Each would wait 40 ms."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = SocketServer(make_app(setting().parts), grace_s=1)
    task = asyncio.create_task(server.serve([listener]))
    async with asyncio.timeout(PATIENCE_S):
        _, writer = await asyncio.open_connection(*listener.getsockname())
    await until(lambda: server.server_state.connections)
    (connection,) = server.server_state.connections
    accepted = connection.transport.get_extra_info("socket")
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    writer.close()
    server.end()
    await task
    listener.close()


async def test_a_client_that_reads_nothing_holds_the_worker_back_and_is_cut_off() -> None:
    """And another one has its answer meanwhile."""
    line = b"data: " + b"x" * 8000 + b"\n\n"
    endless = ScriptedWorker(Reply(line * 20_000, cuts=[len(line)]))
    world = setting(a=endless)
    async with served(make_app(world.parts), Bounds(reader_s=0.3)) as port:
        content = json.dumps(chat()).encode()
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"POST /v1/c HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        await until(lambda: endless.open)
        world.fleet.workers = {"b": ScriptedWorker(Reply(resuming(STEPS)))}
        async with httpx.AsyncClient() as client:
            response = await client.post(f"http://127.0.0.1:{port}/v1/c", json=chat())
        assert response.content == plain(STEPS)
        await until(lambda: not endless.open)
        writer.transport.abort()
    assert sorted(each.finish for each in world.recorder.requests) == ["", "READER_TOO_SLOW"]


async def test_a_worker_that_hangs_up_before_anything_is_not_noticed() -> None:
    dead = ScriptedWorker(Reply(b"", before=HungUpError("POST")))
    world = setting(a=dead, b=ScriptedWorker(Reply(b'{"a": 1}', headers=JSON)))
    async with client_of(make_app(world.parts)) as client:
        response = await client.post("/v1/x", json=chat(stream=False))
    assert response.json() == {"a": 1}
    assert len(dead.requests) == 2
