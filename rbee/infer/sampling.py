"""How the next token is chosen, and where an answer ends, as users may say it. Pure.

`rbee infer` has an option for each of OPTIONS, a chat a setting; both are checked here.
"""

from __future__ import annotations

from collections.abc import Sequence

from rbee.base.checks import check_range, check_text
from rbee.base.errors import UsageError
from rbee_remote.protocol.limits import MAX_STOP_LENGTH, MAX_STOPS, SAMPLING

#: Fields of `Sampling` that have an option, and of what kind their values are.
OPTIONS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "repeat_penalty": float,
    "seed": int,
}


def check_value(said: str, name: str, value: float) -> None:
    """said: what the user calls the field `name`, for the UsageError about a value that no worker takes."""
    check_range(said, value, SAMPLING[name])


def check_stop(said: str, texts: Sequence[str]) -> None:
    """As `check_value`, for the texts that end an answer."""
    if len(texts) > MAX_STOPS:
        raise UsageError(f"{said}: at most {MAX_STOPS} texts can end an answer, got {len(texts)}")
    for text in texts:
        check_text(said, text)
        if not 0 < len(text) <= MAX_STOP_LENGTH:
            raise UsageError(f"{said}: a text has to have 1 to {MAX_STOP_LENGTH} characters, got {len(text)}")
