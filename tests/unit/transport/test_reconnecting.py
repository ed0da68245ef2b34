"""A connection that is made anew in its place: one at a time, with what was learned, and without asking twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from rbee.base.errors import ConnectError
from rbee.base.events import Emit, Event, Notice
from rbee.transport.connection import Connection, SocketAccess
from rbee.transport.passphrases import Passphrases
from rbee.transport.reconnecting import ReconnectingConnection
from rbee_remote.protocol import ErrorCode
from tests.doubles.connection import FakeConnection


class Opener:
    """Opens fake connections, and reports each. open_now: how many are open. fails: the next one cannot be opened."""

    def __init__(self) -> None:
        self.made: list[FakeConnection] = []
        self.open_now = 0
        self.fails = False

    @asynccontextmanager
    async def __call__(self, access: SocketAccess, emit: Emit) -> AsyncIterator[Connection]:
        emit(Notice("opening"))
        if self.fails:
            raise ConnectError(ErrorCode.CONNECTION_TIMEOUT, "gpu1 cannot be reached")
        self.open_now += 1
        self.made.append(FakeConnection(access=access))
        try:
            yield self.made[-1]
        finally:
            self.open_now -= 1


async def test_it_goes_on_with_another_connection_and_what_was_learned() -> None:
    opener, events = Opener(), list[Event]()
    async with ReconnectingConnection("gpu1", opener, events.append) as connection:
        opener.made[0].access = SocketAccess("pipe")
        connection.use_pipe(("python", "pipe"))
        await connection.reopen()
        opener.made[1].answer("uname", b"Linux")
        assert (await connection.run("uname")).stdout == b"Linux"
        assert opener.open_now == 1
        assert connection.access == SocketAccess("pipe", ("python", "pipe"))
    assert opener.open_now == 0
    assert events == [Notice("opening")], "the second time is whoever reopens it to report"


async def test_it_can_be_tried_again_after_a_failure() -> None:
    opener = Opener()
    async with ReconnectingConnection("gpu1", opener, list[Event]().append) as connection:
        opener.made[0].access = SocketAccess("pipe")
        opener.fails = True
        with pytest.raises(ConnectError):
            await connection.reopen()
        assert opener.open_now == 0
        opener.fails = False
        await connection.reopen()
        assert opener.open_now == 1
        assert connection.access.transport == "pipe"
    assert opener.open_now == 0


async def test_a_passphrase_is_asked_for_once_unless_it_was_wrong() -> None:
    typed = iter(["wrong", "right", "changed"])

    async def ask(_: str) -> str:
        return next(typed)

    passphrases = Passphrases(ask)
    first, second = passphrases.asking(), passphrases.asking()
    assert first
    assert second
    assert [await first("key"), await first("key")] == ["wrong", "right"]
    assert await second("key") == "right"
    assert await second("key") == "changed", "what is known did not open the key this time"
