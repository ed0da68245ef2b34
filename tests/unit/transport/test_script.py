"""The answer of a script is found in whatever pieces it comes, between whatever else is printed."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import NodeError
from rbee.transport.markers import MAX_NOISE, Markers

NONCE = "0123456789abcdef0123456789abcdef"
BEGIN = f"rbee-begin:{NONCE}\n".encode()
TRICKY = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"rbee-end:", f"rbee-end:{NONCE}".encode(), f"rbee-end:{NONCE}:x".encode(), b"r", b"\n"]),
)
SCRAPS = st.lists(TRICKY, max_size=5).map(b"".join)


def _end(status: int) -> bytes:
    return f"rbee-end:{NONCE}:{status}\n".encode()


def _feed(markers: Markers, stream: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return b"".join(markers.feed(stream[start:end]) for start, end in itertools.pairwise(edges))


@given(SCRAPS, SCRAPS, st.integers(0, 255), SCRAPS, st.lists(st.integers(0, 1000), max_size=20))
def test_noise_answer_and_status_come_apart_however_the_stream_is_cut(
    noise: bytes, answer: bytes, status: int, after: bytes, cuts: list[int]
) -> None:
    markers = Markers(NONCE)
    assert _feed(markers, noise + BEGIN + answer + _end(status) + after, cuts) == answer
    assert markers.status == status
    assert markers.noise.startswith(noise)


@given(SCRAPS, SCRAPS, st.lists(st.integers(0, 1000), max_size=20))
def test_an_answer_that_breaks_off_is_kept(noise: bytes, answer: bytes, cuts: list[int]) -> None:
    markers = Markers(NONCE)
    assert _feed(markers, noise + BEGIN + answer, cuts) + markers.finish() == answer
    assert (markers.status, markers.noise) == (None, noise)


@given(SCRAPS)
def test_without_a_beginning_all_is_noise(noise: bytes) -> None:
    markers = Markers(NONCE)
    assert markers.feed(noise) + markers.finish() == b""
    assert (markers.begun, markers.noise) == (False, noise)


def test_a_line_is_not_held_back() -> None:
    markers = Markers(NONCE)
    assert markers.feed(BEGIN + b"first\n") == b"first\n"
    assert markers.feed(b"second rbee-end\n") == b"second rbee-end\n"


def test_noise_without_end_is_refused() -> None:
    with pytest.raises(NodeError, match="prints without end"):
        Markers(NONCE).feed(b"x" * (MAX_NOISE + 1))
