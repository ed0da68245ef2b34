"""Random numbers that depend on a seed and a place are as good as those of one generator."""

from __future__ import annotations

import ctypes
import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from rbee_remote.worker.llama.sampler_chain import _mixed

KINDS = 16


def chosen(seed: int) -> int:
    """Of equally likely candidates, the one that llama.cpp's sampler takes."""
    from llama_cpp import llama_cpp as llama

    candidates = (llama.llama_token_data * KINDS)(*((token, 0.0, 0.0) for token in range(KINDS)))
    array = llama.llama_token_data_array(candidates, KINDS, -1, False)
    sampler = llama.llama_sampler_init_dist(seed)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    llama.llama_sampler_free(sampler)
    return int(array.data[array.selected].id)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 2])
def test_places_are_spread_evenly_and_do_not_depend_on_each_other(seed: int) -> None:
    taken = [chosen(_mixed(seed, place)) for place in range(4096)]
    assert unevenness(taken, KINDS) < 45  # chi-squared with 15 degrees of freedom: one in 10,000 is above
    pairs = [4 * (one // 4) + other // 4 for one, other in itertools.pairwise(taken)]
    assert unevenness(pairs, KINDS) < 45


def test_seeds_next_to_each_other_share_nothing() -> None:
    taken = [chosen(_mixed(seed, 0)) for seed in range(4096)]
    assert unevenness(taken, KINDS) < 45


def test_no_place_has_the_seed_that_means_any() -> None:
    seeds = np.array([_mixed(seed, place) for seed in (0, 2**32 - 2) for place in range(1000)])
    assert 0 <= seeds.min() <= seeds.max() < 2**32 - 1


def unevenness(found: Iterable[int], kinds: int) -> float:
    """Pearson's chi-squared."""
    counts = Counter(found)
    expected = counts.total() / kinds
    return sum((counts[kind] - expected) ** 2 / expected for kind in range(kinds))
