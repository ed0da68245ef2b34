"""How much of a prompt may share a step with tokens that others wait for. Pure."""

from __future__ import annotations

#: Seconds by which a prompt may delay the tokens of others. A reader at ten tokens a second hardly notices.
STALL_S = 0.1

LEAST = 16
#: Before anything was measured: a tenth of a second on two slow cores.
FIRST = 32
_WEIGHT = 0.3  # of the latest step


class PrefillLimit:
    """n_batch: tokens of a step at most."""

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._per_token_s: float | None = None

    @property
    def tokens(self) -> int:
        """Prompt tokens of a step at most, so that it takes about STALL_S longer than without them."""
        if self._per_token_s is None:
            return min(FIRST, self._n_batch)
        return max(LEAST, min(self._n_batch, int(STALL_S / self._per_token_s)))

    def observe(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long. Small ones tell little: their time goes into reading the weights."""
        if tokens < LEAST:
            return
        per_token_s = seconds / tokens
        if self._per_token_s is None:
            self._per_token_s = per_token_s
        self._per_token_s += _WEIGHT * (per_token_s - self._per_token_s)
