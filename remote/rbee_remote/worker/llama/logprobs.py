"""How likely a token was: the softmax of the model's own logits, before any sampler."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rbee_remote.protocol import Logprob, Logprobs


def logprobs(logits: NDArray[np.float32], chosen: int, top: int, piece: Callable[[int], bytes]) -> Logprobs:
    """logits: of every token, shape (n_vocab,). top: how many of the likeliest to tell."""
    highest = float(logits.max())
    log_sum = highest + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
    top = min(top, len(logits))
    likeliest = np.argpartition(-logits, top - 1)[:top] if top else np.empty(0, np.intp)
    ordered = likeliest[np.lexsort((likeliest, -logits[likeliest]))]

    def told(token: int) -> Logprob:
        text = piece(token)
        return Logprob(text.decode(errors="replace"), tuple(text), float(logits[token]) - log_sum)

    return Logprobs(told(chosen), tuple(told(int(token)) for token in ordered))
