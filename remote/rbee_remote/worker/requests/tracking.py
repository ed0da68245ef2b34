"""Answers that may go on on another worker, and those that do: what both need to be one answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rbee_remote.protocol import RESUME_FIELD, ErrorCode, RemoteError, Sampling
from rbee_remote.worker.requests.prompt import Prompt


@dataclass(frozen=True, slots=True)
class Tracking:
    """name: what the ids of the answer's calls are made of. seed: the resolved one. tokens: those that the answer
    begins with, because another worker chose them; the one that ended it included."""

    name: str
    seed: int
    tokens: tuple[int, ...] = ()


def check_tokens(tokens: Sequence[int], prompt: Prompt, n_vocab: int) -> None:
    """Raises RemoteError USAGE where these cannot be the first ones of an answer."""
    wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
    if wrong is not None:
        raise refused(f"tokens must be from 0 to {n_vocab - 1}, got {wrong}")
    most = prompt.max_tokens + 1  # the one that ends an answer counts for none
    if len(tokens) > most:
        raise refused(f"a choice has {len(tokens)} tokens, and the request allows {most} at most")


def is_exact(sampling: Sampling) -> bool:
    """Whether somebody may rely on the very same text, so that it must not depend on whether the answer was cut."""
    return sampling.seed is not None or sampling.temperature == 0


def refused(what: str) -> RemoteError:
    return RemoteError(ErrorCode.USAGE, f"{RESUME_FIELD}: {what}", details={"field": RESUME_FIELD})
