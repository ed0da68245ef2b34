"""Reading the fields of a request's body. Everything here raises RemoteError USAGE that names the field."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any, TypeVar

from rbee_remote.protocol import GenerateRequest, ProtocolError, Sampling, decode
from rbee_remote.worker.http.answers.tracking import SEEDS
from rbee_remote.worker.http.openai.errors import wrong

#: OpenAI's own limit.
MOST_CHOICES = 128

_SAMPLING = frozenset(field.name for field in dataclasses.fields(Sampling)) - {"logprobs"}
#: Other servers' names for fields of `Sampling`.
_ALIASES = {"repeat_last_n": "penalty_last_n", "repetition_penalty": "repeat_penalty"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Body:
    """What chat completions and completions have in common. n_predict: llama-server's name for max_tokens."""

    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    n: int = 1
    max_tokens: int | None = None
    n_predict: int | None = None
    stop: Any = None


def read(cls: type[T], data: Any) -> T:
    """A `cls` from JSON values; null counts as left out, and 40.0 as 40."""
    if not isinstance(data, dict):
        raise wrong("", "the body must be a JSON object")
    kind: Any = cls
    integers = _integers(kind)
    given = {
        name: int(value) if name in integers and isinstance(value, float) and value.is_integer() else value
        for name, value in data.items()
        if value is not None
    }
    try:
        return decode(cls, given)
    except ProtocolError as error:
        field, _, what = str(error).removeprefix(f"{cls.__name__}.").partition(": ")
        raise wrong(field, what) from error


@functools.cache
def _integers(cls: Any) -> frozenset[str]:
    hints = typing.get_type_hints(cls)
    return frozenset(name for name, kind in hints.items() if kind is int or int in typing.get_args(kind))


def sampling(data: dict[str, Any], **values: Any) -> Sampling:
    """The body's fields of `Sampling`, under the names of other servers too, except those in `values`.

    A top_k below 0 means all. Seeds are as large as llama.cpp's: others are cut to that, and -1 means any.
    """
    given = {own: data[name] for name, own in _ALIASES.items() if name in data}
    given |= {name: data[name] for name in _SAMPLING & data.keys() if data[name] is not None}
    read_so_far = read(Sampling, {**given, **values})
    seed = read_so_far.seed
    if seed is not None:
        seed = None if seed % 2**32 == SEEDS else seed % 2**32
    return dataclasses.replace(read_so_far, seed=seed, top_k=max(0, read_so_far.top_k))


def check_choices(body: Body, most: int) -> None:
    if not 1 <= body.n <= most:
        raise wrong("n", f"must be from 1 to {most}, got {body.n}")


def for_choice(request: GenerateRequest, request_id: str, choice: int) -> GenerateRequest:
    """The request of the choice with this number: each has a seed of its own, or `n` answers would be one."""
    seed = request.sampling.seed
    if seed is not None and choice:
        seed = (seed + choice) % SEEDS
    return dataclasses.replace(
        request, request_id=request_id, sampling=dataclasses.replace(request.sampling, seed=seed)
    )


def stops(stop: Any) -> tuple[str, ...]:
    """Without empty ones, which nothing ends at."""
    given = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        raise wrong("stop", "must be a string or a list of strings")
    return tuple(text for text in given if text)


def token_limit(body: Body, **first: int | None) -> int | None:
    """None for what the context still holds, which -1 says too, and -2 to llama-server. first: goes before the names
    that all bodies have."""
    limits = {**first, "max_tokens": body.max_tokens, "n_predict": body.n_predict}
    field, value = next(((name, value) for name, value in limits.items() if value is not None), ("", -1))
    if value in (-1, -2):
        return None
    if value < 0:
        raise wrong(field, f"must be 0 or more, got {value}")
    return value


def include_usage(body: Body) -> bool:
    value = body.stream_options.get("include_usage") or False
    if not isinstance(value, bool):
        raise wrong("stream_options.include_usage", "must be true or false")
    return value


def texts_or_tokens(field: str, value: Any) -> list[str | tuple[int, ...]]:
    """One text, several, the tokens of one, or of several; none of them empty."""
    given: list[str | tuple[int, ...]]
    if isinstance(value, str):
        given = [value]
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        given = value
    elif _are_tokens(value):
        given = [tuple(value)]
    elif isinstance(value, list) and value and all(_are_tokens(item) for item in value):
        given = [tuple(item) for item in value]
    else:
        raise wrong(field, "must be a text, a list of texts, a list of tokens or a list of such lists, none empty")
    if not all(given):
        raise wrong(field, "must not be empty")
    return given


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
