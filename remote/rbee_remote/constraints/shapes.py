"""Whether a schema is one at all: what the keywords that hold schemas and names hold, everywhere in it."""

from __future__ import annotations

from typing import Any

from rbee_remote.constraints.places import SchemaError, shown
from rbee_remote.constraints.references import LIST, NAMED, ONE, subschemas


def check(schema: Any, place: str) -> None:
    """Raises SchemaError."""
    todo = [(place, schema)]
    while todo:
        at, part = todo.pop()
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            raise SchemaError(f"{shown(at)}: must be a schema, which is an object or a boolean")
        for word, value in part.items():
            if reason := _wrong(word, value):
                raise SchemaError(f"{shown(at)}: {word} must be {reason}")
            if word in ONE and not isinstance(value, dict | bool | list):
                raise SchemaError(f"{shown(f'{at}/{word}')}: must be a schema, which is an object or a boolean")
        todo += [each for each in subschemas(part, at) if not (_is_names(each[1]) and "/dependencies/" in each[0])]


def _wrong(word: str, value: Any) -> str:
    """What it must be; "" where it is."""
    if word in LIST and word != "items" and not (isinstance(value, list) and (value or word == "prefixItems")):
        return "a list of schemas"
    if word in NAMED and not isinstance(value, dict):
        return "an object of schemas"
    if word in ONE and word != "items" and isinstance(value, list):
        return "a schema, which is an object or a boolean"
    if word == "dependentRequired" and not (isinstance(value, dict) and all(map(_is_names, value.values()))):
        return "an object of lists of names"
    if word == "required" and not _is_names(value):
        return "a list of names"
    if word == "enum" and not isinstance(value, list):
        return "a list"
    return ""


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
