"""The ranges of sampling parameters, and the seed. The sampler chain itself is llama.cpp's, built in `engine`."""

from __future__ import annotations

import secrets

from rbee_remote.protocol import ErrorCode, RemoteError, Sampling

#: Field to its lowest and highest value, both allowed. Seeds are llama.cpp's uint32; its largest means "choose one".
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 5),
    "top_k": (0, 1_000_000),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.1, 10),
    "seed": (0, 2**32 - 2),
}


def check(sampling: Sampling) -> None:
    """Raises RemoteError USAGE naming the first field that is out of its range; NaN is out of every range."""
    for name, (low, high) in RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high:
            raise RemoteError(
                ErrorCode.USAGE,
                f"{name} must be from {low:.10g} to {high:.10g}, got {_shown(value)}",
                details={"field": name},
            )


def resolve_seed(sampling: Sampling) -> int:
    """The seed asked for, else a fresh one."""
    if sampling.seed is not None:
        return sampling.seed
    return secrets.randbelow(2**32 - 1)


def _shown(value: float) -> str:
    try:
        return f"{value:.10g}"
    except OverflowError:  # JSON's integers have no bound, floats do
        return "a larger number" if value > 0 else "a smaller number"
