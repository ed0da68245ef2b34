"""One request's sampler in llama.cpp: from the logits of a row to the next token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import Sampling
from rbee_remote.worker.interface import Sampled

#: How many of the last tokens repeat_penalty looks at: llama.cpp's default.
PENALTY_WINDOW = 64


class Sampler:
    """Made for one request, with `close` at its end. seed: the resolved one. prompt: counts for the penalties."""

    def __init__(self, vocab: llama.llama_vocab_p, sampling: Sampling, seed: int, prompt: Sequence[int]) -> None:
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in _samplers(vocab, sampling, seed):
            llama.llama_sampler_chain_add(self._chain, sampler)
        for token in prompt[-PENALTY_WINDOW:]:
            llama.llama_sampler_accept(self._chain, token)

    def sample(self, context: llama.llama_context_p, row: int) -> Sampled:
        """The next token from the logits of `row` of the last decode; it counts as generated."""
        return Sampled(int(llama.llama_sampler_sample(self._chain, context, row)))

    def close(self) -> None:
        llama.llama_sampler_free(self._chain)


def _samplers(vocab: llama.llama_vocab_p, sampling: Sampling, seed: int) -> Iterator[llama.llama_sampler_p]:
    """In llama.cpp's own order. Samplers that are switched off are left out, not asked to do nothing."""
    if sampling.repeat_penalty != 1:
        n_vocab = llama.llama_vocab_n_tokens(vocab)
        yield llama.llama_sampler_init_penalties(n_vocab, PENALTY_WINDOW, sampling.repeat_penalty, 0.0, 0.0)
    if sampling.temperature == 0:
        yield llama.llama_sampler_init_greedy()
        return
    if sampling.top_k > 0:
        yield llama.llama_sampler_init_top_k(sampling.top_k)
    if sampling.top_p < 1:
        yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    if sampling.min_p > 0:
        yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    yield llama.llama_sampler_init_dist(seed)
