"""What a JSON schema may ask for, checked before it is turned into a grammar, which would write all of it out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

#: Characters of the schema as JSON.
MAX_LENGTH = 64 * 1024
MAX_DEPTH = 64
#: The largest minItems, maxItems, minLength, maxLength, or repetition in a pattern.
MAX_REPETITION = 10_000
#: Properties of one object that may be left out: the grammar for all ways to do so grows with their square.
MAX_OPTIONAL = 200
#: Characters of a grammar, roughly, that repetitions are written out to.
MAX_WRITTEN_OUT = 1_000_000

_BOUNDS = (("minItems", "maxItems"), ("minLength", "maxLength"))
_PATTERN_REPETITION = re.compile(r"\{\s*([0-9]*)\s*,?\s*([0-9]*)\s*\}")


class SchemaError(ValueError):
    """What a schema asks for that cannot be had."""


def check(schema: dict[str, Any]) -> None:
    """Raises SchemaError."""
    written_out = 0
    for path, part in _parts(schema):
        _check_reference(path, part)
        _check_size(path, part)
        written_out += max((*_bounds(path, part), *_pattern_bounds(path, part)), default=0) * (len(path) + 16)
    if written_out > MAX_WRITTEN_OUT:
        raise SchemaError("the schema repeats too much, minItems, maxLength and the like taken together")
    try:
        length = len(json.dumps(schema, allow_nan=False))
    except ValueError as error:
        raise SchemaError(f"the schema is not JSON: {error}") from error
    if length > MAX_LENGTH:
        raise SchemaError(f"a schema may have at most {MAX_LENGTH} characters, this one has {length}")


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in the schema, and its path."""
    todo: list[tuple[str, int, Any]] = [("", 0, schema)]
    while todo:
        path, depth, part = todo.pop()
        if depth > MAX_DEPTH:
            raise SchemaError(f"a schema may be at most {MAX_DEPTH} levels deep")
        if isinstance(part, dict):
            yield path or "/", part
            todo += [(f"{path}/{key}", depth + 1, value) for key, value in part.items()]
        elif isinstance(part, list):
            todo += [(f"{path}/{index}", depth + 1, value) for index, value in enumerate(part)]


def _check_reference(path: str, part: dict[str, Any]) -> None:
    reference = part.get("$ref", "#/")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        raise SchemaError(f"{_shown(path)}: only a $ref inside the schema is followed, such as #/$defs/NAME")


def _check_size(path: str, part: dict[str, Any]) -> None:
    properties, required = part.get("properties"), part.get("required", [])
    if isinstance(properties, dict) and isinstance(required, list):
        optional = sum(name not in required for name in properties)
        if optional > MAX_OPTIONAL:
            raise SchemaError(
                f"{_shown(path)}: an object may have at most {MAX_OPTIONAL} properties that are not required"
            )
    for name in ("anyOf", "enum", "oneOf"):
        if part.get(name) == []:
            raise SchemaError(f"{_shown(path)}: {name} is empty, no value fits")


def _bounds(path: str, part: dict[str, Any]) -> Iterator[int]:
    for names in _BOUNDS:
        least, most = (_bound(path, part, name) for name in names)
        if least is not None and most is not None and least > most:
            raise SchemaError(f"{_shown(path)}: {names[0]} is larger than {names[1]}")
        yield max(least or 0, most or 0)


def _bound(path: str, part: dict[str, Any], name: str) -> int | None:
    value = part.get(name)
    if value is None or isinstance(value, dict):  # a property of that name
        return None
    if not isinstance(value, int) or not 0 <= value <= MAX_REPETITION:
        raise SchemaError(f"{_shown(path)}: {name} must be an integer from 0 to {MAX_REPETITION}")
    return value


def _pattern_bounds(path: str, part: dict[str, Any]) -> Iterator[int]:
    pattern = part.get("pattern")
    if isinstance(pattern, str):
        for found in _PATTERN_REPETITION.finditer(pattern):
            for digits in found.groups():
                if len(digits) > 9 or int(digits or 0) > MAX_REPETITION:
                    raise SchemaError(f"{_shown(path)}: a pattern may repeat at most {MAX_REPETITION} times")
                yield int(digits or 0) * len(pattern)


def _shown(path: str) -> str:
    return path if len(path) <= 80 else f"{path[:77]}..."
