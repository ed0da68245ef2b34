"""Whether no value fits two schemas. `oneOf` is `anyOf` where that holds for all pairs of its alternatives.

Schemas are those that `schema` writes, and "no" may also mean that it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

ALL_TYPES = ("null", "boolean", "number", "string", "array", "object")
_MAX_DEPTH = 8
_LIMITS = {"number": ("minimum", "maximum"), "string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}

Resolve = Callable[[str], Any]


def overlapping(schemas: Sequence[Any], resolve: Resolve) -> tuple[int, int] | None:
    """The first two that some value may fit both; None where there are none. resolve: what a `$ref` leads to."""
    if all(isinstance(schema, dict) and "enum" in schema for schema in schemas):
        return _equal_values(schemas)
    if _differ_in_a_property([resolve(each["$ref"]) if _is_reference(each) else each for each in schemas]):
        return None
    for second, right in enumerate(schemas):
        for first, left in enumerate(schemas[:second]):
            if not _disjoint(left, right, resolve, 0):
                return first, second
    return None


def _equal_values(schemas: Sequence[dict[str, Any]]) -> tuple[int, int] | None:
    """`overlapping` for schemas that list their values, of which there may be thousands."""
    seen: dict[str, int] = {}
    for index, schema in enumerate(schemas):
        for value in schema["enum"]:
            first = seen.setdefault(key(value), index)
            if first != index:
                return first, index
    return None


def _is_reference(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.keys() == {"$ref"}


def _differ_in_a_property(schemas: Sequence[Any]) -> bool:
    """Whether all are objects with a required property that has other values in each: thousands are told apart without
    comparing every pair."""
    if not all(isinstance(schema, dict) and types_of(schema) == {"object"} for schema in schemas):
        return False
    names = [
        name for name in schemas[0].get("required", ()) if all(name in each.get("required", ()) for each in schemas)
    ]
    values = ([_property(schema, name) for schema in schemas] for name in names)
    return any(
        all(isinstance(value, dict) and "enum" in value for value in found) and _equal_values(found) is None
        for found in values
    )


def key(value: Any) -> str:
    """Equal for what JSON Schema takes for equal."""
    return json.dumps(value, sort_keys=True)


def type_of(value: Any) -> str:
    for kinds, name in ((bool, "boolean"), ((int, float), "number"), (str, "string"), (list, "array")):
        if isinstance(value, kinds):
            return name
    return "null" if value is None else "object"


def types_of(schema: dict[str, Any]) -> set[str]:
    """`integer` counts as number."""
    if "enum" in schema:
        return {type_of(value) for value in schema["enum"]}
    given = schema.get("type", ALL_TYPES)
    return {"number" if name == "integer" else name for name in ([given] if isinstance(given, str) else given)}


def _disjoint(left: Any, right: Any, resolve: Resolve, depth: int) -> bool:
    if left is False or right is False:
        return True
    if left is True or right is True or depth > _MAX_DEPTH:
        return False
    return (
        all(_disjoint_as(name, left, right, resolve, depth) for name in types_of(left) & types_of(right))
        or _apart(left, right, resolve, depth)
        or _apart(right, left, resolve, depth)
    )


def _apart(left: dict[str, Any], right: dict[str, Any], resolve: Resolve, depth: int) -> bool:
    """By what is applied to `left` beside its own keywords."""
    parts = [*left.get("allOf", ())]
    if "$ref" in left:
        parts.append(resolve(left["$ref"]))
    if any(_disjoint(part, right, resolve, depth + 1) for part in parts):
        return True
    options = left.get("anyOf")
    return options is not None and all(_disjoint(option, right, resolve, depth + 1) for option in options)


def _disjoint_as(name: str, left: dict[str, Any], right: dict[str, Any], resolve: Resolve, depth: int) -> bool:
    """Of the values of one type."""
    if "enum" in left and "enum" in right:
        return not {key(value) for value in left["enum"]} & {key(value) for value in right["enum"]}
    if name == "object":
        names = dict.fromkeys([*left.get("required", ()), *right.get("required", ())])
        return any(_disjoint(_property(left, each), _property(right, each), resolve, depth + 1) for each in names)
    if name not in _LIMITS:
        return False
    return _beyond(name, left, right) or _beyond(name, right, left)


def _beyond(name: str, left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether all of `left` is smaller or shorter than all of `right`."""
    low, high = _LIMITS[name]
    if low not in right and "enum" not in right:
        return False
    if high not in left and "enum" not in left:
        return False
    size = (lambda value: value) if name == "number" else len
    most = max((size(value) for value in left.get("enum", ()) if type_of(value) == name), default=left.get(high))
    least = min((size(value) for value in right.get("enum", ()) if type_of(value) == name), default=right.get(low))
    return most is not None and least is not None and bool(most < least)


def _property(schema: dict[str, Any], name: str) -> Any:
    if "enum" in schema:
        values = [value[name] for value in schema["enum"] if isinstance(value, dict) and name in value]
        return {"enum": values} if values else False
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)
