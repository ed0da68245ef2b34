from __future__ import annotations

import math
from typing import Any

import pytest

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling
from rbee_remote.worker import sampling


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0},
        {"temperature": 5},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0},
        {"seed": 0},
        {"seed": 2**32 - 2},
    ],
)
def test_in_range(values: dict[str, Any]) -> None:
    sampling.check(Sampling(**values))
    assert 0 <= sampling.resolve_seed(Sampling(**values)) < 2**32 - 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 9.0}, "temperature must be from 0 to 5, got 9"),
        ({"temperature": -0.1}, "temperature must be from 0 to 5, got -0.1"),
        ({"temperature": math.nan}, "temperature must be from 0 to 5, got nan"),
        ({"top_k": -1}, "top_k must be from 0 to 1000000, got -1"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1, got 1.5"),
        ({"min_p": math.inf}, "min_p must be from 0 to 1, got inf"),
        ({"repeat_penalty": 0.0}, "repeat_penalty must be from 0.1 to 10, got 0"),
        ({"seed": 2**32 - 1}, "seed must be from 0 to 4294967294, got 4294967295"),
        ({"seed": 10**400}, "seed must be from 0 to 4294967294, got a larger number"),
    ],
)
def test_out_of_range_names_the_field(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteError) as caught:
        sampling.check(Sampling(**values))
    assert caught.value.code is ErrorCode.USAGE
    assert caught.value.message == message
    assert caught.value.details == {"field": next(iter(values))}


def test_a_given_seed_is_kept_and_others_differ() -> None:
    assert sampling.resolve_seed(Sampling(seed=7)) == 7
    assert len({sampling.resolve_seed(Sampling()) for _ in range(20)}) > 1
