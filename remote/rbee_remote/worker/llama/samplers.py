"""One request's sampler: from the logits of a row to the next token.

With a constraint the token is sampled without it first. Mostly the constraint allows that one; only where it does not
are all tokens held against it, and one of those that it allows is sampled, as llama.cpp's own programs do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llama_cpp import llama_cpp as llama

from rbee_remote.protocol import Logprob, Logprobs, Sampling
from rbee_remote.worker.engine.interface import Sampled
from rbee_remote.worker.llama.constraints import Matcher
from rbee_remote.worker.llama.sampler_chain import Chain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: llama_token_data, as numpy writes it.
_CANDIDATE = [("id", "int32"), ("logit", "float32"), ("p", "float32")]


class Samplers:
    """Makes the samplers of one model. n_ctx: tokens of a sequence's context. piece: the bytes of a token."""

    def __init__(self, vocab: llama.llama_vocab_p, n_ctx: int, piece: Callable[[int], bytes]) -> None:
        self.vocab = vocab
        self.n_ctx = n_ctx
        self.n_vocab = llama.llama_vocab_n_tokens(vocab)
        self.piece = piece

    def make(self, sampling: Sampling, seed: int, prompt: Sequence[int], matcher: Matcher | None) -> Sampler:
        """seed: the resolved one. prompt: counts for the penalties. Raises RemoteError USAGE naming the field that
        this model does not take."""
        return Sampler(self, sampling, Chain(self.vocab, sampling, seed, prompt, self.n_ctx), matcher)


class Sampler:
    """Made by `Samplers.make` for one request, with `close` at its end."""

    def __init__(self, common: Samplers, sampling: Sampling, chain: Chain, matcher: Matcher | None) -> None:
        self._common = common
        self._sampling = sampling
        self._chain = chain
        self._matcher = matcher

    def sample(self, context: llama.llama_context_p, row: int) -> Sampled:
        """The next token from the logits of `row` of the last decode; it counts as generated.

        Raises RemoteError USAGE where the constraint has become too complex to follow, or leaves no token.
        """
        self._chain.begin()
        if self._matcher is None:
            token = int(llama.llama_sampler_sample(self._chain.pointer, context, row))
            self._chain.passed()
        else:
            token = self._sample_constrained(self._matcher, self._logits(context, row))
        if self._sampling.logprobs is None:
            return Sampled(token)
        told = logprobs(self._logits(context, row), token, self._sampling.logprobs, self._common.piece)
        return Sampled(token, told)

    def accept(self, token: int) -> None:
        """It was not sampled here, and counts as generated. Raises RemoteError USAGE where the constraint does not
        allow it."""
        if self._matcher is not None:
            self._matcher.accept(token)
        self._chain.accept(token)

    def close(self) -> None:
        self._chain.close()

    def _sample_constrained(self, matcher: Matcher, logits: NDArray[np.float32]) -> int:
        import numpy as np

        token = self._choose(np.arange(len(logits)), logits)
        if not matcher.take(token):
            allowed = matcher.allowed()
            token = self._choose(allowed, logits[allowed])
            matcher.accept(token)
        self._chain.accept(token)
        return token

    def _choose(self, tokens: NDArray[np.intp], logits: NDArray[np.float32]) -> int:
        """One of `tokens`, by the chain."""
        import numpy as np

        candidates = np.empty(len(tokens), _CANDIDATE)
        candidates["id"] = tokens
        candidates["logit"] = logits
        pointer = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(pointer, len(candidates), -1, False)
        llama.llama_sampler_apply(self._chain.pointer, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def _logits(self, context: llama.llama_context_p, row: int) -> NDArray[np.float32]:
        import numpy as np

        return np.ctypeslib.as_array(llama.llama_get_logits_ith(context, row), (self._common.n_vocab,))


def logprobs(logits: NDArray[np.float32], chosen: int, top: int, piece: Callable[[int], bytes]) -> Logprobs:
    """How likely a token was: the softmax of the model's own logits, before any sampler.

    logits: of every token, shape (n_vocab,). top: how many of the likeliest to tell.
    """
    import numpy as np

    highest = float(logits.max())
    log_sum = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    top = min(top, len(logits))
    likeliest = np.argpartition(-logits, top - 1)[:top] if top else np.empty(0, np.intp)
    ordered = likeliest[np.lexsort((likeliest, -logits[likeliest]))]

    def told(token: int) -> Logprob:
        text = piece(token)
        return Logprob(text.decode(errors="replace"), tuple(text), float(logits[token]) - log_sum)

    return Logprobs(told(chosen), tuple(told(int(token)) for token in ordered))
