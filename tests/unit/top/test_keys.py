"""What terminals send for a key, however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.top.keys import Keys


def keys(*pieces: bytes) -> list[str]:
    reader = Keys()
    return [key for piece in pieces for key in reader.feed(piece)] + reader.flush()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"q", ["q"]),
        (b"\r", ["enter"]),
        (b"\n", ["enter"]),
        (b"\x7f\x08", ["backspace", "backspace"]),
        (b"\x1b", ["escape"]),
        (b"\x1b\x1b", ["escape", "escape"]),
        (b"\x1b[A\x1bOA\x1b[B", ["up", "up", "down"]),
        (b"\x1b[5~\x1b[6~", ["pageup", "pagedown"]),
        (b"\x1b[H\x1b[1~\x1bOH\x1b[F\x1b[4~", ["home", "home", "home", "end", "end"]),
        (b"\x1b[1;5A", []),  # Ctrl-Up: nothing of ours
        (b"\x1b[200~", []),
        (b"\x1b[<0;10;5M", []),
        (b"\x1bq", ["q"]),  # Alt-q
        ("é漢".encode(), ["é", "漢"]),
        (b"\xff", ["\ufffd"]),
        (b"\x00\x01\x09", []),
        (b"\x1b[" + b"1" * 40 + b"q", ["1"] * 24 + ["q"]),
    ],
)
def test_what_is_sent_is_a_key(sent: bytes, expected: list[str]) -> None:
    assert keys(sent) == expected
    assert keys(*(bytes((byte,)) for byte in sent)) == expected


def test_an_escape_that_goes_on_is_no_key() -> None:
    reader = Keys()
    assert reader.feed(b"\x1b") == []
    assert reader.is_begun
    assert reader.feed(b"[A") == ["up"]
    assert not reader.is_begun
    assert reader.flush() == []


@given(st.binary(max_size=60), st.integers(1, 5))
def test_whatever_is_sent_is_keys_that_show(sent: bytes, size: int) -> None:
    found = keys(*(sent[at : at + size] for at in range(0, len(sent), size)))
    assert all(len(key) > 1 or key.isprintable() for key in found)
