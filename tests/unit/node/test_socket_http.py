"""Server-sent events come out whole however the bytes are cut; HTTP errors become ours."""

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import NodeError
from rbee.node.socket_http import ServerSentEvent, parse_events

BODY = (
    b': keep-alive\n\nid: 1\nevent: token\ndata: {"text": "h\xc3\xa9", "tokens": 1}\n\n'
    b'event: done\r\nid: 2\r\ndata: {"a":\r\ndata: 1}\r\n\r\ndata: 3\n\n'
)
EVENTS = [
    ServerSentEvent("token", {"text": "hé", "tokens": 1}, "1"),
    ServerSentEvent("done", {"a": 1}, "2"),
    ServerSentEvent("message", 3, ""),
]


async def _pieces(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = [0, *sorted({cut % (len(body) + 1) for cut in cuts}), len(body)]
    for start, end in itertools.pairwise(edges):
        yield body[start:end]


@given(st.lists(st.integers(0, 500), max_size=12))
async def test_events_are_whole_however_the_body_is_cut(cuts: list[int]) -> None:
    assert [event async for event in parse_events(_pieces(BODY, cuts))] == EVENTS


async def test_an_event_without_its_blank_line_is_not_delivered() -> None:
    assert [event async for event in parse_events(_pieces(b"data: 1\n\ndata: 2\n", []))] == [
        ServerSentEvent("message", 1, "")
    ]


async def test_data_that_is_no_json_is_an_error() -> None:
    with pytest.raises(NodeError, match="not JSON"):
        [event async for event in parse_events(_pieces(b"data: {nope\n\n", []))]


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield b"data: " + b"x" * 1_000_000 + b"\n"


async def test_an_event_that_never_ends_is_an_error() -> None:
    with pytest.raises(NodeError, match="without an end"):
        [event async for event in parse_events(_endless())]


async def test_data_that_is_nested_too_deep_is_an_error() -> None:
    with pytest.raises(NodeError, match="not JSON"):
        [event async for event in parse_events(_pieces(b"data: " + b"[" * 200_000 + b"\n\n", []))]
