"""Whatever bytes a node answers with, each call of the keeper ends soon, in a value or in an error that is no bug."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.base.errors import RbeeError
from rbee.node.hive_client import HiveClient, WorkerClient
from rbee.node.socket_http import MAX_BODY, MAX_EVENT, NonsenseError
from rbee.transport.connection import Stream
from rbee_remote.protocol import (
    BenchRequest,
    DownloadRequest,
    ErrorCode,
    GenerateRequest,
    NeedsRequest,
    RegisterRequest,
    SpawnRequest,
    StopRequest,
)
from tests.doubles.connection import FakeConnection
from tests.hostile import MESSAGES, Path, answer, chunked, leaves, replaced
from tests.patience import PATIENCE_S

SOCKET = "/run/rbee.sock"
ID = "a" * 16
#: Longer than any call below may take, on a machine that is busy.

Call = Callable[[HiveClient, WorkerClient], Awaitable[object]]


async def _all(stream: Any) -> list[object]:
    async with stream as items:
        return [item async for item in items]


async def _pulled(hive: HiveClient) -> list[object]:
    async with aclosing(hive.pull(DownloadRequest("m", ()))) as items:  # type: ignore[type-var]
        return [item async for item in items]


#: Every call, with the message that it expects.
CALLS: dict[str, tuple[Call, str]] = {
    "health": (lambda hive, _: hive.health(), "hive"),
    "workers": (lambda hive, _: hive.workers(), "workers"),
    "worker": (lambda hive, _: hive.worker(ID), "worker"),
    "preflight": (lambda hive, _: hive.preflight(SpawnRequest("m")), "fit"),
    "ensure_worker": (lambda hive, _: hive.ensure_worker(SpawnRequest("m")), "worker"),
    "worker_states": (lambda hive, _: _all(hive.worker_states(ID, follower="f")), "states"),
    "follow a hive": (lambda hive, _: _all(hive.follow(silence_s=5)), "hive news"),
    "watch a hive": (lambda hive, _: _all(hive.watch(silence_s=5)), "hive watched"),
    "stop_worker": (lambda hive, _: hive.stop_worker(ID), "worker"),
    "models": (lambda hive, _: hive.models(), "models"),
    "models elsewhere": (lambda hive, _: hive.elsewhere(), "elsewhere"),
    "register": (lambda hive, _: hive.register(RegisterRequest("m", "/m.gguf")), "model"),
    "needs": (lambda hive, _: hive.needs(NeedsRequest("m")), "needs"),
    "pull": (lambda hive, _: _pulled(hive), "pull"),
    "remove": (lambda hive, _: hive.remove("m"), "model"),
    "worker health": (lambda _, worker: worker.health(), "status"),
    "follow a worker": (lambda _, worker: _all(worker.follow(silence_s=5)), "worker news"),
    "generate": (lambda _, worker: _all(worker.generate(GenerateRequest("f" * 32), silence_s=5)), "answer"),
    "resume": (lambda _, worker: _all(worker.resume("f" * 32, after=1, silence_s=5)), "answer"),
    "bench": (lambda _, worker: _all(worker.bench(BenchRequest())), "bench"),
    "cancel": (lambda _, worker: worker.cancel("f" * 32), "fit"),
}


async def ask(call: Call, respond: Callable[[Stream], Awaitable[None]]) -> object:
    """What a call returns or raises, when `respond` answers. It has to end in time."""
    connection = FakeConnection()

    async def serve(stream: Stream) -> None:
        await stream.read(2**16)
        await respond(stream)

    connection.listen(SOCKET, serve)
    hive = HiveClient(connection, SOCKET, keeper_id="k")
    worker = WorkerClient(connection, SOCKET, worker_id=ID, keeper_id="k")
    async with connection, asyncio.timeout(PATIENCE_S):
        try:
            return await call(hive, worker)
        except RbeeError as error:
            assert error.code is not ErrorCode.INTERNAL
            assert error.message
            return error


def saying(data: bytes) -> Callable[[Stream], Awaitable[None]]:
    return lambda stream: stream.write(data)


def endless(head: bytes, piece: bytes) -> Callable[[Stream], Awaitable[None]]:
    """`head`, then `piece` until nobody listens."""

    async def respond(stream: Stream) -> None:
        await stream.write(head)
        while True:
            await stream.write(piece)
            await asyncio.sleep(0)

    return respond


OK = b"HTTP/1.1 200 OK\r\n"
STREAM = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DEEP = b"[" * 100_000 + b"]" * 100_000
LONG = b"1" * 1_000_000


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_understands_what_a_node_says(name: str) -> None:
    call, message = CALLS[name]
    assert not isinstance(await ask(call, saying(answer(MESSAGES[message]))), RbeeError)


#: What is no answer at all, or one that says wrong things of itself.
NO_HTTP = {
    "nothing": b"",
    "zeros": b"\0" * 5000,
    "a banner": b"SSH-2.0-OpenSSH_9.2\r\n" * 50,
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 500,
    "no version": b"200 OK\r\n\r\n",
    "HTTP/0.9": b"{}",
    "HTTP/9.9": b"HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "status 999": b"HTTP/1.1 999 OK\r\ncontent-length: 2\r\n\r\n{}",
    "status 99": b"HTTP/1.1 99 OK\r\n\r\n",
    "status 101": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{}",
    "status 302": b"HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n",
    "length too long": OK + b"content-length: 10\r\n\r\n{}",
    "length negative": OK + b"content-length: -2\r\n\r\n{}",
    "length of words": OK + b"content-length: two\r\n\r\n{}",
    "length of 2^70": OK + b"content-length: 1180591620717411303424\r\n\r\n{}",
    "two lengths": OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "length and chunks": OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    "gzip, chunked": OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "gzip": OK + b"transfer-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
    "chunk of 2^63": OK + b"transfer-encoding: chunked\r\n\r\n8000000000000000\r\n{}",
    "chunk negative": OK + b"transfer-encoding: chunked\r\n\r\n-2\r\n{}\r\n",
    "chunk of words": OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "chunk without its end": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}{}{}\r\n",
    "chunks that stop": OK + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "folded header": OK + b"x: 1\r\n y\r\ncontent-length: 2\r\n\r\n{}",
    "header without colon": OK + b"nonsense\r\n\r\n{}",
    "header with NUL": OK + b"x: \0\r\n\r\n{}",
    "a second answer": answer({}) + answer({"workers": []}),
    "an error without a body": b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("what", NO_HTTP)
async def test_nonsense_instead_of_http_is_an_error(what: str) -> None:
    for name, (call, _) in CALLS.items():
        result = await ask(call, saying(NO_HTTP[what]))
        if name != "cancel" and name not in STREAMS:
            assert isinstance(result, RbeeError), name


#: Bodies that are JSON only by some readings.
BODIES = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "text": b'"hive"',
    "number": b"12",
    "cut off": b'{"protocol": 1, ',
    "latin-1": b'{"version": "\xe9"}',
    "UTF-16": '{"workers": []}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"workers": []}',
    "half a surrogate pair": b'{"workers": [], "models": [], "x": "\\ud800"}',
    "half a pair as UTF-8": b'{"workers": [], "models": [], "x": "\xed\xa0\x80"}',
    "NaN": b'{"workers": [], "models": [], "x": NaN}',
    "infinity": b'{"workers": [], "models": [], "x": 1e999}',
    "too deep": DEEP,
    "too deep inside": b'{"workers": [], "models": [], "x": ' + DEEP + b"}",
    "a number of a megabyte": b'{"workers": [], "models": [], "x": ' + LONG + b"}",
    "a number of 65 bits": b'{"workers": [], "models": [], "x": 18446744073709551616}',
    "a list of everything": b'{"workers": ' + b"[" + b"{}," * 300_000 + b"{}]}",
    "pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}


@pytest.mark.parametrize("body", BODIES)
async def test_a_body_that_is_no_json_of_ours_is_an_error(body: str) -> None:
    for name, (call, _) in CALLS.items():
        result = await ask(call, saying(answer(BODIES[body])))
        assert isinstance(result, RbeeError) or name in ("cancel", *STREAMS), name
        sent_as_event = await ask(call, saying(chunked(b"id: 1\nevent: done\ndata: " + BODIES[body] + b"\n\n")))
        assert isinstance(sent_as_event, RbeeError) or body == "empty", name


STREAMS = ("follow a hive", "watch a hive", "follow a worker", "worker_states", "pull", "generate", "resume", "bench")

ENDLESS = {
    "header": endless(OK + b"x: ", b"y" * 65536),
    "headers": endless(OK, b"x: y\r\n" * 5000),
    "status line": endless(b"HTTP/1.1 200 ", b"O" * 65536),
    "body of chunks": endless(OK + b"transfer-encoding: chunked\r\n\r\n", b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
    "body until the end": endless(OK + b"\r\n", b"[" * 65536),
    "chunk size": endless(OK + b"transfer-encoding: chunked\r\n\r\n", b"0" * 65536),
    "chunk extension": endless(OK + b"transfer-encoding: chunked\r\n\r\n1;", b"x" * 65536),
    "error": endless(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n", b"8000\r\n" + b'"' * 0x8000 + b"\r\n"),
    "line of an event": endless(STREAM, b"8000\r\n" + b"d" * 0x8000 + b"\r\n"),
    "lines of an event": endless(STREAM, b"8000\r\n" + b"data: x\n" * 0x1000 + b"\r\n"),
    "lines that mean nothing": endless(STREAM, b"8000\r\n" + b"retry:1\n" * 0x1000 + b"\r\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_what_has_no_end_is_given_up_soon(what: str) -> None:
    for name in ("health", "worker_states", "generate"):
        began = time.process_time()
        assert isinstance(await ask(CALLS[name][0], ENDLESS[what]), RbeeError), name
        assert time.process_time() - began < PATIENCE_S / 2


async def test_continue_for_ever_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(stream: Stream) -> None:
        while True:
            await stream.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.01)

    monkeypatch.setattr("rbee.node.hive_client.STREAM_SILENCE_S", 0.3)
    result = await ask(lambda _, worker: _all(worker.generate(GenerateRequest("f" * 32), silence_s=0.3)), respond)
    assert isinstance(result, RbeeError)
    assert result.code is ErrorCode.CONNECTION_TIMEOUT


async def test_a_byte_now_and_then_does_not_stretch_a_call() -> None:
    async def respond(stream: Stream) -> None:
        await stream.write(OK + b"\r\n")
        while True:
            await stream.write(b" ")
            await asyncio.sleep(0.05)

    async def call(hive: HiveClient, _: WorkerClient) -> object:
        return await hive._http.request("GET", "/v1/health", timeout=0.5)

    result = await ask(call, respond)
    assert isinstance(result, RbeeError)
    assert result.code is ErrorCode.CONNECTION_TIMEOUT


async def test_data_in_a_million_lines_is_joined_in_one_go() -> None:
    lines = b"data:1\n" * (MAX_EVENT // 16)
    began = time.process_time()
    result = await ask(CALLS["worker_states"][0], saying(chunked(lines + b"\n")))
    assert isinstance(result, RbeeError)
    assert time.process_time() - began < PATIENCE_S / 4


async def test_a_long_answer_is_read_as_long_as_it_is_plausible() -> None:
    workers = MESSAGES["workers"]["workers"] * 2000
    assert len(json.dumps(workers)) < MAX_BODY
    result = await ask(CALLS["workers"][0], saying(answer({"workers": workers})))
    assert isinstance(result, list)
    assert len(result) == 2000


@pytest.mark.parametrize("worker_id", ["", "../../stop", "a" * 15, "A" * 16, "a" * 16 + "\r\nX-Evil: 1", "é" * 16])
async def test_a_worker_whose_id_is_none_is_refused(worker_id: str) -> None:
    worker = MESSAGES["worker"] | {"id": worker_id}
    for call, said in (("worker", worker), ("workers", {"workers": [worker]})):
        assert isinstance(await ask(CALLS[call][0], saying(answer(said))), RbeeError)


@pytest.mark.parametrize("socket", ["", "worker.sock", "-rf", "/a\0b", "/" + "a" * 107])
async def test_a_worker_whose_socket_is_no_path_is_refused(socket: str) -> None:
    assert isinstance(await ask(CALLS["worker"][0], saying(answer(MESSAGES["worker"] | {"socket": socket}))), RbeeError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, 0), "progress"),
        ((0, 1, "slots", 0, "slot"), 4),
        ((0, 1, "slots", 0, "slot"), -1),
        ((0, 1, "slots", 0, "slot"), 3),  # twice
        ((0, 1, "slots", 0, "digests", 0), "A" * 16),
        ((0, 1, "slots", 0, "digests", 0), "0" * 16 + "\n"),
        ((0, 1, "slots", 0, "digests", 0), None),
        ((0, 1, "status", "slots"), 10**6),
        ((0, 1, "status", "slots_free"), 5),
        ((0, 1, "status", "queued"), -1),
        ((0, 1, "typical_s"), "1"),
    ],
)
async def test_news_of_a_worker_that_make_no_sense_are_refused(path: Path, value: object) -> None:
    said = replaced(MESSAGES["worker news"], path, value)
    assert isinstance(await ask(CALLS["follow a worker"][0], saying(answer(said))), NonsenseError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, 0), "state"),
        ((0, 1, "workers", 0, "id"), "../../stop"),
        ((0, 1, "workers", 0, "socket"), "worker.sock"),
        ((0, 1, "workers", 0, "secret"), "x"),
        ((0, 1, "models", 0, "sha256"), "x"),
        ((0, 1, "models"), "none"),
    ],
)
async def test_news_of_a_hive_that_make_no_sense_are_refused(path: Path, value: object) -> None:
    said = replaced(MESSAGES["hive news"], path, value)
    assert isinstance(await ask(CALLS["follow a hive"][0], saying(answer(said))), NonsenseError)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((1, 0), "burden"),
        ((1, 1, "at"), -1.0),
        ((1, 1, "cores"), "4"),
        ((1, 1, "cpu"), 1.01),
        ((1, 1, "ram_used_mb"), -1),
        ((1, 1, "gpus", 0, "use"), -0.1),
        ((1, 1, "gpus", 0, "total_mb"), -1),
        ((1, 1, "workers", 0, "id"), "\x1b[2J"),
        ((1, 1, "workers", 0, "running"), -1),
        ((1, 1, "workers", 0, "work", "generated"), -1),
        ((1, 1, "workers", 0, "work", "first_token_s"), -1.0),
    ],
)
async def test_a_load_that_makes_no_sense_is_refused(path: Path, value: object) -> None:
    said = replaced(MESSAGES["hive watched"], path, value)
    assert isinstance(await ask(CALLS["watch a hive"][0], saying(answer(said))), NonsenseError)


@pytest.mark.parametrize("number", ["", "x", "-1", "1.5", "٣", "²", "9" * 5000])
async def test_an_event_whose_number_is_none_is_refused(number: str) -> None:
    body = f'id: {number}\nevent: done\ndata: {{"finish_reason": "stop"}}\n\n'.encode()
    assert isinstance(await ask(CALLS["generate"][0], saying(chunked(body))), RbeeError)


# --- whatever comes ------------------------------------------------------------------------------------------------

whatever = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=2**62, max_value=2**66)
    | st.floats()
    | st.text()
    | st.sampled_from(["\x1b[2J", "\u202e", "../../etc", "-rf", "'; touch /tmp/x #", "$(reboot)", "\ud800", "\0", "/"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(st.data())
async def test_a_message_with_a_wrong_value_is_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CALLS)))
    call, message = CALLS[name]
    path = data.draw(st.sampled_from(leaves(MESSAGES[message])))
    changed = replaced(MESSAGES[message], path, data.draw(whatever))
    await ask(call, saying(answer(changed)))


@settings(max_examples=300)
@given(st.data())
async def test_an_answer_with_wrong_bytes_is_read_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CALLS)))
    call, message = CALLS[name]
    said = bytearray(answer(MESSAGES[message]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(said)))
        cut = data.draw(st.integers(0, 8))
        said[at : at + cut] = data.draw(st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\n\n", b'"', b"0", b"-"]))
    await ask(call, saying(bytes(said)))


async def test_a_load_that_gets_no_further_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.node.hive_client.STALLED_LOAD_S", 0.3)
    loading = MESSAGES["worker"] | {"state": "loading", "progress": 0.5}
    state = b"event: state\ndata: " + json.dumps(loading).encode() + b"\n\n"

    async def respond(stream: Stream) -> None:
        await stream.write(STREAM)
        while True:
            await stream.write(b"%x\r\n%b\r\n" % (len(state), state))
            await asyncio.sleep(0.01)

    result = await ask(CALLS["worker_states"][0], respond)
    assert isinstance(result, RbeeError)
    assert result.code is ErrorCode.LOADING_TIMEOUT


async def test_stopping_a_hive_that_never_goes_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.node.hive_client.STOP_TIMEOUT_S", 0.3)
    result = await ask(lambda hive, _: hive.stop(StopRequest(patience_s=0.0)), saying(answer(MESSAGES["hive"])))
    assert isinstance(result, RbeeError)
    assert result.code is ErrorCode.IN_USE
