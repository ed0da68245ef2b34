"""A request's chain of llama.cpp's samplers, in the order of llama.cpp's own programs (common/sampling.cpp).

Samplers that are switched off are left out, not asked to do nothing.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling


def make_chain(
    vocab: llama.llama_vocab_p, sampling: Sampling, seed: int, prompt: Sequence[int], n_ctx: int
) -> llama.llama_sampler_p:
    """To be freed by the caller. seed: the resolved one. prompt: what the penalties remember. n_ctx: tokens of context,
    which is the longest memory of all. Raises RemoteError USAGE for a bias on a token that the model does not have."""
    biases = _biases(vocab, sampling)
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    for sampler in _samplers(vocab, sampling, seed, biases, n_ctx):
        llama.llama_sampler_chain_add(chain, sampler)
    remembered = max(_window(sampling, n_ctx), _dry_window(sampling, n_ctx))
    for token in prompt[-remembered:] if remembered else ():
        llama.llama_sampler_accept(chain, token)
    return chain


def _samplers(
    vocab: llama.llama_vocab_p, sampling: Sampling, seed: int, biases: dict[int, float], n_ctx: int
) -> Iterator[llama.llama_sampler_p]:
    if biases:
        array = (llama.llama_logit_bias * len(biases))(*biases.items())
        yield llama.llama_sampler_init_logit_bias(llama.llama_vocab_n_tokens(vocab), len(biases), array)
    if window := _window(sampling, n_ctx):
        penalties = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        yield llama.llama_sampler_init_penalties(llama.llama_vocab_n_tokens(vocab), window, *penalties)
    if window := _dry_window(sampling, n_ctx):
        yield _dry(vocab, sampling, window)
    if sampling.temperature == 0:
        yield llama.llama_sampler_init_greedy()
    elif sampling.mirostat:
        yield llama.llama_sampler_init_temp(sampling.temperature)
        yield llama.llama_sampler_init_mirostat_v2(seed, sampling.mirostat_tau, sampling.mirostat_eta)
    else:
        yield from _truncating(sampling, seed)
        yield llama.llama_sampler_init_temp(sampling.temperature)
        yield llama.llama_sampler_init_dist(seed)


def _truncating(sampling: Sampling, seed: int) -> Iterator[llama.llama_sampler_p]:
    """Each leaves at least one token."""
    if sampling.top_k > 0:
        yield llama.llama_sampler_init_top_k(sampling.top_k)
    if sampling.typical_p < 1:
        yield llama.llama_sampler_init_typical(sampling.typical_p, 1)
    if sampling.top_p < 1:
        yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    if sampling.xtc_probability > 0:
        yield llama.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, seed)


def _dry(vocab: llama.llama_vocab_p, sampling: Sampling, window: int) -> llama.llama_sampler_p:
    breakers = [text.encode("utf-8", "replace") for text in sampling.dry_sequence_breakers]
    return llama.llama_sampler_init_dry(
        vocab,
        sampling.dry_multiplier,
        sampling.dry_base,
        sampling.dry_allowed_length,
        window,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )


def _window(sampling: Sampling, n_ctx: int) -> int:
    """How many tokens back the penalties look; 0 where they are off."""
    off = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty) == (1, 0, 0)
    return 0 if off else _tokens_back(sampling.penalty_last_n, n_ctx)


def _dry_window(sampling: Sampling, n_ctx: int) -> int:
    return _tokens_back(sampling.dry_penalty_last_n, n_ctx) if sampling.dry_multiplier else 0


def _tokens_back(asked: int, n_ctx: int) -> int:
    return n_ctx if asked < 0 else min(asked, n_ctx)


def _biases(vocab: llama.llama_vocab_p, sampling: Sampling) -> dict[int, float]:
    """The request's, and minus infinity for the tokens that the model file says are never to be generated."""
    n_vocab = llama.llama_vocab_n_tokens(vocab)
    found = {int(token): bias for token, bias in sampling.logit_bias.items()}
    if unknown := [token for token in found if token >= n_vocab]:
        raise RemoteError(
            ErrorCode.USAGE,
            f"logit_bias must have tokens below {n_vocab}, got {unknown[0]}",
            details={"field": "logit_bias"},
        )
    count = ctypes.c_int32()
    suppressed = llama.llama_vocab_get_suppress_tokens(vocab, ctypes.byref(count))
    return {**found, **dict.fromkeys(suppressed[: count.value] if count.value else (), -math.inf)}
