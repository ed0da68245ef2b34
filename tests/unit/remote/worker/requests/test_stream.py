"""However tokens cut a text, the same of it comes out, and never a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.worker.requests.stream import TextStream


def stream(pieces: list[bytes], stop: list[str]) -> list[str]:
    texts = TextStream(stop)
    return [*(texts.feed(piece) for piece in pieces), texts.finish()]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        ([b"a", b"b"], [], ["a", "b", ""]),
        (["é".encode()[:1], "é".encode()[1:]], [], ["", "é", ""]),
        (["😀".encode()[:3]], [], ["", "\ufffd"]),
        ([b"\xff", b"a"], [], ["\ufffd", "a", ""]),
        ([b"one S", b"TOP two"], ["STOP"], ["one ", "", ""]),
        ([b"one S", b"ON"], ["STOP"], ["one ", "SON", ""]),
        ([b"one S"], ["STOP"], ["one ", "S"]),
        ([b"STOP"], ["STOP"], ["", ""]),
        ([b"abcd"], ["abcd", "bc"], ["a", ""]),
        ([b"x\n", b"\ny"], ["\n\n"], ["x", "", ""]),
    ],
)
def test_pieces(pieces: list[bytes], stop: list[str], expected: list[str]) -> None:
    assert stream(pieces, stop) == expected


def cuts(data: bytes) -> st.SearchStrategy[list[bytes]]:
    places = st.lists(st.integers(0, len(data)), max_size=8).map(sorted)
    return places.map(lambda at: [data[i:j] for i, j in zip([0, *at], [*at, len(data)], strict=True)])


@given(st.binary(max_size=40).flatmap(cuts))
def test_without_stop_strings_nothing_is_lost(pieces: list[bytes]) -> None:
    assert "".join(stream(pieces, [])) == b"".join(pieces).decode(errors="replace")


@given(
    st.text("abé", max_size=30).flatmap(lambda text: cuts(text.encode())),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
)
def test_how_tokens_cut_the_text_changes_nothing(pieces: list[bytes], stop: list[str]) -> None:
    whole = b"".join(pieces).decode()
    text = "".join(stream(pieces, stop))
    assert text == "".join(stream([whole.encode()], stop))
    assert whole.startswith(text)
    assert not any(string in text for string in stop)
    assert (text == whole) == (not any(string in whole for string in stop))


@given(
    st.text("abc", max_size=30).flatmap(lambda text: cuts(text.encode())),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_text_is_held_back_only_while_it_can_become_a_stop_string(pieces: list[bytes], stop: list[str]) -> None:
    texts = TextStream(stop)
    fed = shown = ""
    for piece in pieces:
        fed += piece.decode()
        shown += texts.feed(piece)
        held = fed[len(shown) :]
        assert texts.stopped or not held or any(string.startswith(held) for string in stop)
