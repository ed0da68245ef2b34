from __future__ import annotations

import math

import numpy as np
import pytest

from rbee_remote.worker.llama.samplers import logprobs

PIECES = [b"a", b"b", "ä".encode()[:1], b"", b"e"]


def test_the_softmax_in_natural_logarithms() -> None:
    odds = [1.0, 5.0, 2.0, 2.0, 0.0]
    told = logprobs(
        np.array([math.log(odd) if odd else -math.inf for odd in odds], np.float32), 0, 4, PIECES.__getitem__
    )
    assert told.chosen.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [item.logprob for item in told.top] == pytest.approx([math.log(p) for p in (0.5, 0.2, 0.2, 0.1)], abs=1e-6)
    assert [(item.token, item.bytes) for item in told.top] == [
        ("b", (98,)),
        ("\ufffd", (0xC3,)),
        ("", ()),
        ("a", (97,)),
    ]


@pytest.mark.parametrize(("top", "told"), [(0, 0), (1, 1), (5, 5), (20, 5)])
def test_as_many_as_asked_for_and_there_are(top: int, told: int) -> None:
    found = logprobs(np.array([1e4, -1e4, 3, 2, 1], np.float32), 1, top, PIECES.__getitem__)
    assert len(found.top) == told
    assert found.chosen.logprob == pytest.approx(-2e4)
