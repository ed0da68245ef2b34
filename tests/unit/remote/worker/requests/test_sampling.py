from __future__ import annotations

import math
from typing import Any

import pytest

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling
from rbee_remote.worker.requests import sampling


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"temperature": 0},
        {"temperature": 5},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0},
        {"seed": 0},
        {"seed": 2**32 - 2},
        {"frequency_penalty": -2.0, "presence_penalty": 2.0, "penalty_last_n": -1},
        {"dry_multiplier": 0.8, "dry_sequence_breakers": ("ä" * 20,)},
        {"mirostat": 2, "logprobs": 20, "logit_bias": {"0": -100.0, "17": 100}},
        {"grammar": 'root ::= "yes" | "no"'},
        {"json_schema": {}},
        {"regex": "a+", "strict": False},
        {"lark": 'start: "a"'},
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
        ({"typical_p": -0.1}, "typical_p must be from 0 to 1, got -0.1"),
        ({"frequency_penalty": 2.5}, "frequency_penalty must be from -2 to 2, got 2.5"),
        ({"presence_penalty": -3}, "presence_penalty must be from -2 to 2, got -3"),
        ({"penalty_last_n": -2}, "penalty_last_n must be from -1 to 1000000, got -2"),
        ({"dry_multiplier": -1.0}, "dry_multiplier must be from 0 to 100, got -1"),
        ({"dry_base": 0.5}, "dry_base must be from 1 to 10, got 0.5"),
        ({"dry_allowed_length": -1}, "dry_allowed_length must be from 0 to 1000000, got -1"),
        ({"dry_penalty_last_n": 2**31}, "dry_penalty_last_n must be from -1 to 1000000, got 2147483648"),
        ({"xtc_probability": 1.1}, "xtc_probability must be from 0 to 1, got 1.1"),
        ({"xtc_threshold": math.nan}, "xtc_threshold must be from 0 to 1, got nan"),
        ({"mirostat": 1}, "mirostat must be 0 or 2, got 1"),
        ({"mirostat_tau": -1.0}, "mirostat_tau must be from 0 to 100, got -1"),
        ({"mirostat_eta": 2.0}, "mirostat_eta must be from 0 to 1, got 2"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20, got 21"),
        ({"logit_bias": {"-1": 1.0}}, "logit_bias must have token ids as keys, got '-1'"),
        ({"logit_bias": {"²": 1.0}}, "logit_bias must have token ids as keys, got '²'"),
        ({"logit_bias": {"9" * 50: 1.0}}, f"logit_bias must have token ids as keys, got '{'9' * 40}'"),
        ({"logit_bias": {"7": 101.0}}, "logit_bias of token 7 must be from -100 to 100, got 101"),
        ({"logit_bias": {"7": math.nan}}, "logit_bias of token 7 must be from -100 to 100, got nan"),
        (
            {"logit_bias": {str(token): 1.0 for token in range(1025)}},
            "logit_bias must have at most 1024 tokens, got 1025",
        ),
        ({"dry_sequence_breakers": ("x",) * 17}, "dry_sequence_breakers must have at most 16 texts, got 17"),
        (
            {"dry_sequence_breakers": ("",)},
            "dry_sequence_breakers must be texts of 1 to 40 bytes without NUL, got ''",
        ),
        ({"grammar": "x" * 65_537}, "grammar must have at most 65536 characters, got 65537"),
        ({"regex": "x" * 65_537}, "regex must have at most 65536 characters, got 65537"),
        ({"lark": "x", "regex": "y"}, "lark cannot be given together with regex"),
        (
            {"json_schema": {}, "grammar": 'root ::= "a"'},
            "json_schema cannot be given together with grammar",
        ),
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
