"""Arguments that are written as text between tags, one pair for each: Qwen 3 Coder's and GLM's.

Text says nothing about its type, so the tool's schema does: what may only be a string is the text as it stands,
anything else is JSON, and the text where it is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Reading, Script

Schema = Mapping[str, Any]


class Arguments:
    """Writes the arguments of the call that has begun as JSON, key by key."""

    def __init__(self, reading: Reading, name: str) -> None:
        assert reading.tools
        self._reading = reading
        self._schema = reading.tools.parameters[name]
        self._empty = True

    def read(self, key: str, *ends: str) -> Script[None]:
        """The value of that key, up to the first of the ends."""
        start = "{" if self._empty else ", "
        head = f"{start}{json.dumps(key, ensure_ascii=False)}: "
        self._empty = False
        if is_text(self._schema, property_of(self._schema, key)):
            self._reading.argue(f'{head}"')
            yield from self._reading.until(self._say, *ends)
            self._reading.argue('"')
        else:
            text, _ = yield from self._reading.collect(*ends)
            self._reading.argue(head + json.dumps(_value(text), ensure_ascii=False))

    def end(self) -> None:
        self._reading.argue("{}" if self._empty else "}")

    def _say(self, text: str) -> None:
        self._reading.argue(json.dumps(text, ensure_ascii=False)[1:-1])


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return text


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def property_of(schema: Schema, key: str) -> Any:
    properties = schema.get("properties")
    return properties.get(key) if isinstance(properties, Mapping) else None


def is_text(root: Schema, schema: Any, depth: int = 8) -> bool:
    """Whether nothing but a string fits. depth: of references that are followed."""
    if not isinstance(schema, Mapping) or not depth:
        return False
    if "type" in schema:
        return schema["type"] in ("string", ["string"])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return isinstance(values, list) and all(isinstance(value, str) for value in values)
    if isinstance(reference := schema.get("$ref"), str):
        return is_text(root, _referred(root, reference), depth - 1)
    choices = schema.get("anyOf") or schema.get("oneOf")
    return isinstance(choices, list) and all(is_text(root, choice, depth - 1) for choice in choices)


def _referred(root: Schema, reference: str) -> Any:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def arguments_rule(lark: Lark, schema: Schema, pair: Callable[[str, str], str], end: str, space: str = "") -> str:
    """All arguments: as declared, those that are not required if the model likes.

    pair: makes a rule of a key, a literal, and a value with its end. end: the marker of a value's end. space: what
    stands before it.
    """
    properties = schema.get("properties")
    required = schema.get("required")
    parts = []
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        written = lark.rule(pair(quoted(key), _value_rule(lark, schema, value, end, space)), "pair")
        parts.append(written if isinstance(required, list) and key in required else f"{written}?")
    return " ".join(parts)


def _value_rule(lark: Lark, root: Schema, schema: Any, end: str, space: str) -> str:
    """A value and its end."""
    ended = f"{quoted(space)} {lark.mark(end)}" if space else lark.mark(end)
    if not is_text(root, schema):
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return f"{lark.json({**schema, **shared} if isinstance(schema, Mapping) else schema)} {ended}"
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list):
        return f"{lark.any_of([quoted(choice) for choice in choices])} {ended}"
    return lark.until(end)
