"""What a node says of its audit log is bounded, whatever it says: nothing here ends by itself."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from rbee.audit import check
from rbee.audit.check import Verdict, _Reading, _verify_on_node
from rbee.base.errors import NodeError
from rbee.transport.connection import Connection
from rbee_remote.protocol import ErrorCode
from rbee_remote.protocol.audit import MAX_BREAKS, AuditHead, pack_head

#: Says lines after the head; the argument is the mark.
Says = Callable[[bytes], Iterator[bytes]]


class Hostile:
    """A connection to a node that says what it likes, and never has anybody wait."""

    def __init__(self, says: Says) -> None:
        self._says = says

    @asynccontextmanager
    async def stream_script(self, script: str) -> AsyncIterator[AsyncIterator[bytes]]:
        found = re.search(r"echo ([0-9a-f]{32});", script)
        assert found

        async def lines() -> AsyncIterator[bytes]:
            yield pack_head(AuditHead())
            for line in self._says(found[1].encode()):
                yield line

        yield lines()


async def verify(says: Says) -> Verdict:
    connection = cast("Connection", Hostile(says))
    verdict, _ = await _verify_on_node(connection, "/log", lambda seen: _Reading("/log", seen))
    return verdict


def rotated(mark: bytes, numbers: Any) -> Iterator[bytes]:
    for number in numbers:
        yield mark + b"audit-%04d-20260101.log" % number
        yield b"{}"
        yield b""


@pytest.mark.parametrize(
    "says",
    [
        lambda mark: itertools.cycle([mark + b"audit.log", b"{}", b""]),
        lambda mark: itertools.chain.from_iterable((mark + b"%d" % n, b"{}") for n in itertools.count()),
        lambda mark: itertools.cycle([mark + b"../audit.log", b"{}"]),
        lambda mark: rotated(mark, itertools.count(1)),
        lambda _: itertools.repeat(b"{}"),
        lambda mark: itertools.chain([mark + b"audit.log"], itertools.repeat(b"{}")),
        lambda mark: itertools.chain([mark + b"audit.log"], itertools.repeat(b"")),
    ],
    ids=["the same file", "files", "another folder", "files that could be", "no file", "lines", "empty lines"],
)
async def test_what_has_no_end_is_refused(says: Says, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MOST_BYTES", 2**18)
    with pytest.raises(NodeError) as caught:
        await verify(says)
    assert caught.value.code is ErrorCode.INVALID_RESPONSE
    assert "report on its audit log makes no sense" in caught.value.message


async def test_breaks_of_all_files_together_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    report = _Reading._report

    def watched(reading: _Reading, breaks: Any) -> None:
        nonlocal most
        report(reading, breaks)
        most = max(most, len(reading._breaks))

    monkeypatch.setattr(_Reading, "_report", watched)
    verdict = await verify(lambda mark: itertools.chain(rotated(mark, range(1, 500)), [mark, pack_head(AuditHead())]))
    assert len(verdict.breaks) == most == MAX_BREAKS
    assert len(verdict.files) == 499


async def test_a_node_that_never_pauses_lets_others_have_their_turn() -> None:
    """And its own deadline come."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await verify(lambda mark: itertools.chain([mark + b"audit.log"], itertools.repeat(b"")))
