"""The fake connection behaves like a real one where tests rely on it."""

from __future__ import annotations

import hashlib

import pytest

from rbee.base.errors import ConnectError, NodeError
from rbee.transport.connection import Completed, Stream
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection


async def test_scripts_get_the_first_answer_that_fits() -> None:
    connection = FakeConnection()
    connection.answer("uname", b"Linux\n")
    connection.answer("fail", Completed(b"", "no", 1))
    connection.answer("echo", lambda script: Completed(script.encode(), "", 0))
    assert (await connection.run("uname -s")).stdout == b"Linux\n"
    assert (await connection.run("fail")).status == 1
    async with connection.stream_script("echo a\necho b") as lines:
        assert [line async for line in lines] == [b"echo a", b"echo b"]
    with pytest.raises(AssertionError, match="no answer was given"):
        await connection.run("surprise")
    assert connection.scripts == ["uname -s", "fail", "echo a\necho b", "surprise"]


async def test_files_are_kept_and_checked() -> None:
    connection = FakeConnection()
    await connection.put(b"x", "/there", sha256=hashlib.sha256(b"x").hexdigest(), mode=0o600)
    assert (connection.files["/there"].content, connection.files["/there"].mode) == (b"x", 0o600)
    with pytest.raises(NodeError):
        await connection.put(b"y", "/there", sha256=hashlib.sha256(b"x").hexdigest())


async def test_streams_are_served_by_a_function_until_nobody_listens() -> None:
    async def shout(stream: Stream) -> None:
        while data := await stream.read(100):
            await stream.write(data.upper())

    async with FakeConnection() as connection:
        connection.listen("/hive.sock", shout)
        stream = await connection.open_stream("/hive.sock")
        await stream.write(b"hi")
        assert await stream.read(100) == b"HI"
        await stream.aclose()
        connection.stop_listening("/hive.sock")
        with pytest.raises(NodeError) as caught:
            await connection.open_stream("/hive.sock")
        assert caught.value.code is ErrorCode.WORKER_GONE


async def test_a_lost_connection_answers_nothing() -> None:
    connection = FakeConnection(lost=True)
    with pytest.raises(ConnectError) as caught:
        await connection.run("true")
    assert caught.value.code is ErrorCode.CONNECTION_LOST
