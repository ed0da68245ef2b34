"""Reading the fields of a request's body. Everything here raises RemoteError USAGE that names the field."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from typing import Any, TypeVar

from rbee_remote.protocol import AdapterScale, GenerateRequest, ProtocolError, Sampling, decode
from rbee_remote.worker.http.answers.tracking import SEEDS
from rbee_remote.worker.http.openai.errors import wrong

#: OpenAI's own limit.
MOST_CHOICES = 128

_SAMPLING = frozenset(field.name for field in dataclasses.fields(Sampling)) - {"logprobs"}
#: Other servers' names for fields of `Sampling`.
_ALIASES = {"repeat_last_n": "penalty_last_n", "repetition_penalty": "repeat_penalty"}

_TRUTHS = {"true": True, "false": False}
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Body:
    """What all bodies that ask for text have in common. n_predict: llama-server's name for max_tokens. lora: of its
    bodies too, a scale for each adapter that is to be applied."""

    model: str = ""
    stream: bool = False
    stream_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    n: int = 1
    max_tokens: int | None = None
    n_predict: int | None = None
    stop: Any = None
    lora: tuple[AdapterScale, ...] | None = None


def read(cls: type[T], data: Any) -> T:
    """A `cls` from JSON values; null counts as left out, 40.0 and "40" as 40, and "true" and 1 as true."""
    if not isinstance(data, dict):
        raise wrong("", "the body must be a JSON object")
    kind: Any = cls
    kinds = _plain_kinds(kind)
    given = {
        name: _as(kinds[name], value) if name in kinds else value for name, value in data.items() if value is not None
    }
    try:
        return decode(cls, given)
    except ProtocolError as error:
        field, _, what = str(error).removeprefix(f"{cls.__name__}.").partition(": ")
        raise wrong(field, what) from error


@functools.cache
def _plain_kinds(cls: Any) -> dict[str, type]:
    """The fields of a class that are a number or a truth, or may be left out as such."""
    hints = typing.get_type_hints(cls)
    return {
        name: plain
        for name, kind in hints.items()
        for plain in (bool, int, float)
        if plain is kind or {*typing.get_args(kind)} == {plain, type(None)}
    }


def _as(kind: type, value: Any) -> Any:
    """A value as other servers read it for a field of this kind; what does not fit stays as it is, to be refused."""
    if isinstance(value, str):
        value = _TRUTHS.get(value.lower(), value) if kind is bool else _number(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is bool and value in (0, 1) and isinstance(value, (int, float)):
        return bool(value)
    return value


def _number(text: str) -> Any:
    """The number that a text is, of one that JSON could have; else the text."""
    if not _NUMBER.fullmatch(text):
        return text
    return int(text) if text.lstrip("-").isdecimal() else float(text)


@functools.cache
def names(cls: Any) -> frozenset[str]:
    """Of the fields that a body of this class is read for, with those of `Sampling` and their other names."""
    return frozenset(field.name for field in dataclasses.fields(cls)) | _SAMPLING | _ALIASES.keys() | {"ignore_eos"}


def sampling(data: dict[str, Any], **values: Any) -> Sampling:
    """The body's fields of `Sampling`, under the names of other servers too, except those in `values`.

    A top_k below 0 means all. Seeds are as large as llama.cpp's: others are cut to that, and -1 means any.
    """
    given = {own: data[name] for name, own in _ALIASES.items() if name in data}
    given |= {name: data[name] for name in _SAMPLING & data.keys() if data[name] is not None}
    if type(seed := _as(int, given.get("seed"))) is int:  # longer ones than the protocol has are somebody's hash
        given["seed"] = seed % 2**32
    read_so_far = read(Sampling, {**given, **values})
    seed = None if read_so_far.seed == SEEDS else read_so_far.seed
    return dataclasses.replace(read_so_far, seed=seed, top_k=max(0, read_so_far.top_k))


def check_choices(body: Body, most: int, said: str = "n") -> None:
    """said: what the body calls their number."""
    if not 1 <= body.n <= most:
        raise wrong(said, f"must be from 1 to {most}, got {body.n}")


def for_choice(request: GenerateRequest, request_id: str, choice: int, body: Body) -> GenerateRequest:
    """The request of the choice with this number, with what all bodies say alike: each has a seed of its own, or `n`
    answers would be one."""
    seed = request.sampling.seed
    if seed is not None and choice:
        seed = (seed + choice) % SEEDS
    return dataclasses.replace(
        request,
        request_id=request_id,
        sampling=dataclasses.replace(request.sampling, seed=seed),
        lora=body.lora,
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
    """One text, the tokens of one, or several of them, of both kinds; none of them empty."""
    given: list[str | tuple[int, ...]]
    if isinstance(value, str):
        given = [value]
    elif _are_tokens(value):
        given = [tuple(value)]
    elif isinstance(value, list) and value and all(isinstance(item, str) or _are_tokens(item) for item in value):
        given = [item if isinstance(item, str) else tuple(item) for item in value]
    else:
        raise wrong(field, "must be a text, the tokens of one, or a list of texts and lists of tokens, none empty")
    if not all(given):
        raise wrong(field, "must not be empty")
    return given


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
