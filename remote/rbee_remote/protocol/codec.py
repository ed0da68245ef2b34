"""Frozen dataclasses to JSON values and back, every field checked. Standard library only.

Rules
- What comes in is hostile until it is checked: `parse_json` bounds what any reader has to bear, `decode` gives a type.
- An error names the field and quotes little of what stood there.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar, Union


class ProtocolError(ValueError):
    """A message that does not have the shape its type says; the text names the field."""


T = TypeVar("T")

#: What all readers of JSON can hold: SQLite, and everything that is not Python.
LARGEST_INTEGER = 2**63 - 1
#: No message of ours is nested deeper than a schema inside a request.
MAX_DEPTH = 64
_QUOTED = 80


def parse_json(text: bytes | str, *, unique: bool = False) -> Any:
    """The value of a JSON text in UTF-8, as RFC 8259 and I-JSON (RFC 7493) have it.

    unique: a name that an object has twice is an error; else its last value counts.
    Raises ProtocolError for what is no JSON, and for what Python's parser lets through and later readers stumble over:
    NaN and infinities, integers of more than 64 bits, halves of surrogate pairs, nesting deeper than MAX_DEPTH.
    """
    try:
        hook = _unique if unique else None
        value = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text, object_pairs_hook=hook)
        _check_value(value, 0)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {_why_no_json(error)}") from error
    return value


def _why_no_json(error: ValueError | RecursionError) -> str:
    """With the place, where there is one."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}, column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error) if isinstance(error, ProtocolError) else "it cannot be parsed"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise ProtocolError(f"an object has the name {_shown(twice)} twice")
    return found


def _check_value(value: Any, depth: int) -> None:
    if isinstance(value, str):
        value.encode("utf-8")  # UnicodeEncodeError, a ValueError, for half a surrogate pair
    elif isinstance(value, int):
        _check_integer(value, "value")
    elif isinstance(value, float):
        _decode_float(value, "value")
    elif value is not None:
        if depth == MAX_DEPTH:
            raise ProtocolError(f"nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict):
            for key in value:
                key.encode("utf-8")
            value = value.values()
        for item in value:
            _check_value(item, depth + 1)


def encode(message: Any) -> dict[str, Any]:
    """The JSON object of a message."""
    data: dict[str, Any] = dataclasses.asdict(message)
    return data


def decode(cls: type[T], data: Any) -> T:
    """A `cls` from JSON values.

    Raises ProtocolError, naming the field, for what is missing or of the wrong type.
    """
    value: T = _decode(cls, data, cls.__name__)
    return value


def _decode(kind: Any, data: Any, where: str) -> Any:
    return _decoder(kind)(data, where)


@functools.cache
def _decoder(kind: Any) -> Callable[[Any, str], Any]:
    """How values of a type are read, found once: a gateway decodes the same few types with every request."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        (kind,) = (option for option in args if option is not type(None))
        inner = _decoder(kind)
        return lambda data, where: None if data is None else inner(data, where)
    if dataclasses.is_dataclass(kind):
        return functools.partial(_decode_dataclass, kind)
    if origin is tuple:
        item = _decoder(args[0])
        return lambda data, where: tuple(item(each, f"{where}[{i}]") for i, each in _items(data, where))
    if origin is dict:
        return functools.partial(_decode_dict, args[1])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return functools.partial(_decode_enum, kind)
    return functools.partial(_decode_plain, kind)


def _decode_enum(kind: type[enum.Enum], data: Any, where: str) -> enum.Enum:
    try:
        return kind(data)
    except ValueError as error:
        raise ProtocolError(f"{where}: {_shown(data)} is none of {[member.value for member in kind]}") from error


def _decode_plain(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, (int, float)) and not isinstance(data, bool):
        return _decode_float(data, where)
    if kind is not Any and (not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool)):
        raise ProtocolError(f"{where}: expected {kind.__name__}, got {type(data).__name__}")
    if kind is int:
        _check_integer(data, where)
    return data


def _check_integer(data: int, where: str) -> None:
    if abs(data) > LARGEST_INTEGER:
        raise ProtocolError(f"{where}: too large a number")


def _shown(data: Any) -> str:
    """Some of a value that is wrong."""
    text = repr(data)
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def _decode_float(data: int | float, where: str) -> float:
    """Python's parser takes NaN, Infinity and integers without a bound; none of them is a JSON number for the peer."""
    try:
        value = float(data)
    except OverflowError as error:
        raise ProtocolError(f"{where}: too large a number") from error
    if not math.isfinite(value):
        raise ProtocolError(f"{where}: {value} is not a number")
    return value


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ProtocolError(f"{where}: expected an object, got {type(data).__name__}")
    values = {}
    for name, decoder, is_needed in _fields(kind):
        if name in data:
            values[name] = decoder(data[name], f"{where}.{name}")
        elif is_needed:
            raise ProtocolError(f"{where}.{name}: missing")
    return kind(**values)


@functools.cache
def _fields(kind: Any) -> tuple[tuple[str, Callable[[Any, str], Any], bool], ...]:
    """Of a dataclass: the name of each, how it is read, and whether it must be there."""
    hints, nothing = typing.get_type_hints(kind), dataclasses.MISSING
    return tuple(
        (field.name, _decoder(hints[field.name]), field.default is nothing and field.default_factory is nothing)
        for field in dataclasses.fields(kind)
    )


def _decode_dict(kind: Any, data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ProtocolError(f"{where}: expected an object, got {type(data).__name__}")
    return {key: _decode(kind, value, f"{where}.{key[:_QUOTED]}") for key, value in data.items()}


def _items(data: Any, where: str) -> enumerate[Any]:
    if not isinstance(data, (list, tuple)):
        raise ProtocolError(f"{where}: expected a list, got {type(data).__name__}")
    return enumerate(data)
