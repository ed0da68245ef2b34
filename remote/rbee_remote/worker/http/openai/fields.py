"""Reading the fields of a request's body. Everything here raises RemoteError USAGE that names the field."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from rbee_remote.protocol import GenerateRequest, ProtocolError, Sampling, decode
from rbee_remote.worker.http.openai.errors import wrong

#: OpenAI's own limit.
MOST_CHOICES = 128

#: Seeds are llama.cpp's uint32, whose largest means "choose one".
SEEDS = 2**32 - 1

_SAMPLING = frozenset(field.name for field in dataclasses.fields(Sampling)) - {"logprobs"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Body:
    """What chat completions and completions have in common. max_tokens -1 is llama-server's word for no limit."""

    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    n: int = 1
    max_tokens: int | None = None
    stop: Any = None


def read(cls: type[T], data: Any) -> T:
    """A `cls` from JSON values; null counts as left out."""
    if not isinstance(data, dict):
        raise wrong("", "the body must be a JSON object")
    try:
        return decode(cls, {name: value for name, value in data.items() if value is not None})
    except ProtocolError as error:
        field, _, what = str(error).removeprefix(f"{cls.__name__}.").partition(": ")
        raise wrong(field, what) from error


def sampling(data: dict[str, Any], **values: Any) -> Sampling:
    """The body's fields of `Sampling`, except those in `values`. A seed of -1 is llama-server's word for any."""
    given = {name: data[name] for name in _SAMPLING & data.keys()}
    if given.get("seed") == -1:
        del given["seed"]
    return read(Sampling, {**given, **values})


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
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    if isinstance(stop, list) and all(isinstance(text, str) for text in stop):
        return tuple(stop)
    raise wrong("stop", "must be a string or a list of strings")


def token_limit(field: str, value: int | None) -> int | None:
    """None for what the context still holds."""
    if value is None or value == -1:
        return None
    if value < 1:
        raise wrong(field, f"must be 1 or more, got {value}")
    return value


def include_usage(body: Body) -> bool:
    value = body.stream_options.get("include_usage", False)
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
