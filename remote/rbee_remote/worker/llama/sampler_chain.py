"""A request's chain of llama.cpp's samplers, in the order of llama.cpp's own programs (common/sampling.cpp).

Rules
- Samplers that are switched off are left out, not asked to do nothing.
- The random numbers of a token depend on the seed and on its place in the answer, and on nothing before it: how many
  llama.cpp's samplers draw for a token varies with the candidates, and an answer that goes on elsewhere knows no more
  than its tokens. Mirostat is the exception: it remembers how surprising each token was.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling

#: Seeds are llama.cpp's uint32, whose largest means "choose one".
_SEEDS = 2**32 - 1


class Chain:
    """The samplers of one request, to be freed by `close`.

    seed: the resolved one. prompt: what the penalties remember. n_ctx: tokens of context, which is the longest memory
    of all. Raises RemoteError USAGE for a bias on a token that the model does not have.
    """

    def __init__(
        self, vocab: llama.llama_vocab_p, sampling: Sampling, seed: int, prompt: Sequence[int], n_ctx: int
    ) -> None:
        biases = _biases(vocab, sampling)
        self.pointer: llama.llama_sampler_p = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in _samplers(vocab, sampling, seed, biases, n_ctx):
            llama.llama_sampler_chain_add(self.pointer, sampler)
        self._seed = seed
        self._drawing = _drawing(sampling)
        self._fixed = llama.llama_sampler_chain_n(self.pointer)
        self._drawn = 0  # samplers behind the fixed ones
        self._place = 0
        remembered = max(_window(sampling, n_ctx), _dry_window(sampling, n_ctx))
        for token in prompt[-remembered:] if remembered else ():
            llama.llama_sampler_accept(self.pointer, token)

    def begin(self) -> None:
        """The next token is about to be sampled."""
        if self._drawing is None:
            return
        for _ in range(self._drawn):
            llama.llama_sampler_free(llama.llama_sampler_chain_remove(self.pointer, self._fixed))
        samplers = self._drawing(_mixed(self._seed, self._place))
        for sampler in samplers:
            llama.llama_sampler_chain_add(self.pointer, sampler)
        self._drawn = len(samplers)

    def accept(self, token: int) -> None:
        """It counts as generated."""
        llama.llama_sampler_accept(self.pointer, token)
        self._place += 1

    def passed(self) -> None:
        """`llama_sampler_sample` chose a token, and has told the samplers."""
        self._place += 1

    def close(self) -> None:
        llama.llama_sampler_free(self.pointer)


def _mixed(seed: int, place: int) -> int:
    """A seed for each place: neighbours share no bits. The constants are those of MurmurHash3's 32-bit finalizer."""
    value = (seed + place * 0x9E3779B9) & 0xFFFFFFFF
    value = ((value ^ value >> 16) * 0x85EBCA6B) & 0xFFFFFFFF
    value = ((value ^ value >> 13) * 0xC2B2AE35) & 0xFFFFFFFF
    return (value ^ value >> 16) % _SEEDS


def _samplers(
    vocab: llama.llama_vocab_p, sampling: Sampling, seed: int, biases: dict[int, float], n_ctx: int
) -> Iterator[llama.llama_sampler_p]:
    """All but those of `_drawing`, which come last."""
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
        yield from _truncating(sampling)
        if sampling.xtc_probability == 0:
            yield llama.llama_sampler_init_temp(sampling.temperature)


def _drawing(sampling: Sampling) -> Callable[[int], Sequence[llama.llama_sampler_p]] | None:
    """Makes the samplers that draw random numbers, from a seed; None where none does so for each token anew."""
    if sampling.temperature == 0 or sampling.mirostat:
        return None
    if sampling.xtc_probability == 0:
        return lambda seed: (llama.llama_sampler_init_dist(seed),)
    return lambda seed: (
        llama.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, _mixed(seed, 1)),
        llama.llama_sampler_init_temp(sampling.temperature),
        llama.llama_sampler_init_dist(seed),
    )


def _truncating(sampling: Sampling) -> Iterator[llama.llama_sampler_p]:
    """Each leaves at least one token."""
    if sampling.top_k > 0:
        yield llama.llama_sampler_init_top_k(sampling.top_k)
    if sampling.typical_p < 1:
        yield llama.llama_sampler_init_typical(sampling.typical_p, 1)
    if sampling.top_p < 1:
        yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield llama.llama_sampler_init_min_p(sampling.min_p, 1)


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
