"""Scales of a request, as a table."""

from __future__ import annotations

import math

import pytest

from rbee_remote.protocol import AdapterScale, ErrorCode, RemoteError
from rbee_remote.protocol.load import AdapterFile
from rbee_remote.worker.requests.adapters import scales_of

TWO = (AdapterFile("a", "/a", 1.0), AdapterFile("b", "/b", 0.25))


def lora(*asked: tuple[int, float]) -> tuple[AdapterScale, ...]:
    return tuple(AdapterScale(*each) for each in asked)


@pytest.mark.parametrize(
    ("asked", "scales"),
    [((), (0.0, 0.0)), (((1, 0.5),), (0.0, 0.5)), (((1, 2.0), (0, -1.0)), (-1.0, 2.0))],
)
def test_what_is_not_named_is_not_applied(asked: tuple[tuple[int, float], ...], scales: tuple[float, ...]) -> None:
    assert scales_of(TWO, lora(*asked)) == scales


def test_who_says_nothing_gets_them_as_they_were_loaded() -> None:
    assert scales_of(TWO, None) == (1.0, 0.25)
    assert scales_of((), None) == scales_of((), lora()) == ()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (((2, 1.0),), r"lora\[0\]\.id: the worker has no adapter 2: its ids are 0 to 1"),
        (((0, 1.0), (-1, 1.0)), r"lora\[1\]\.id"),
        (((0, math.inf),), r"lora\[0\]\.scale: a scale is from -1000 to 1000"),
        (((0, math.nan),), r"lora\[0\]\.scale"),
    ],
)
def test_what_cannot_be_is_refused(asked: tuple[tuple[int, float], ...], words: str) -> None:
    with pytest.raises(RemoteError, match=words) as raised:
        scales_of(TWO, lora(*asked))
    assert raised.value.code is ErrorCode.USAGE


def test_a_worker_without_adapters_says_so() -> None:
    with pytest.raises(RemoteError, match="it was loaded without any"):
        scales_of((), lora((0, 1.0)))
