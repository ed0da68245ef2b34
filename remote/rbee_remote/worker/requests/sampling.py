"""What a request may ask of sampling, and its seed. The samplers are llama.cpp's, made in `llama.sampler_chain`."""

from __future__ import annotations

import secrets

from rbee_remote.constraints import rules
from rbee_remote.protocol import ErrorCode, RemoteError, Sampling, limits

BIAS_RANGE = (-100, 100)
MAX_BIASES = 1024
MAX_BREAKERS = 16
#: Bytes of a sequence breaker: llama.cpp cuts longer ones off.
MAX_BREAKER = 40


def check(sampling: Sampling) -> None:
    """Raises RemoteError USAGE naming the first field that llama.cpp could not take; NaN is out of every range. What a
    constraint says is left to `rules.content_rule`, which may take a second."""
    for name, (low, high) in limits.SAMPLING.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise _usage(name, f"must be from {low:.10g} to {high:.10g}, got {_shown(value)}")
    if sampling.mirostat not in (0, 2):
        raise _usage("mirostat", f"must be 0 or 2, got {sampling.mirostat}")
    _check_biases(sampling.logit_bias)
    _check_breakers(sampling.dry_sequence_breakers)
    rules.given(sampling)


def resolve_seed(sampling: Sampling) -> int:
    """The seed asked for, else a fresh one."""
    if sampling.seed is not None:
        return sampling.seed
    return secrets.randbelow(2**32 - 1)


def _check_biases(biases: dict[str, float]) -> None:
    if len(biases) > MAX_BIASES:
        raise _usage("logit_bias", f"must have at most {MAX_BIASES} tokens, got {len(biases)}")
    low, high = BIAS_RANGE
    for token, bias in biases.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise _usage("logit_bias", f"must have token ids as keys, got {token[:40]!r}")
        if not low <= bias <= high:
            raise _usage("logit_bias", f"of token {token} must be from {low} to {high}, got {_shown(bias)}")


def _check_breakers(breakers: tuple[str, ...]) -> None:
    name = "dry_sequence_breakers"
    if len(breakers) > MAX_BREAKERS:
        raise _usage(name, f"must have at most {MAX_BREAKERS} texts, got {len(breakers)}")
    for text in breakers:
        if not 0 < len(text.encode("utf-8", "replace")) <= MAX_BREAKER or "\0" in text:
            raise _usage(name, f"must be texts of 1 to {MAX_BREAKER} bytes without NUL, got {text[:40]!r}")


def _usage(name: str, what: str) -> RemoteError:
    return RemoteError(ErrorCode.USAGE, f"{name} {what}", details={"field": name})


def _shown(value: float) -> str:
    try:
        return f"{value:.10g}"
    except OverflowError:  # JSON's integers have no bound, floats do
        return "a larger number" if value > 0 else "a smaller number"
