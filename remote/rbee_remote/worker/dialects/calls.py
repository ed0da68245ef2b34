"""Calls written as JSON objects, as several dialects do: how they are read, and their grammar."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rbee_remote.worker.dialects.flow import SPACE
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, inside, quoted
from rbee_remote.worker.dialects.reading import Ended, NoCall, Reading, Script

#: Some models put commas or semicolons between calls where others put nothing.
_BETWEEN = f"{SPACE},;"


@dataclass(frozen=True, slots=True)
class Keys:
    """Under which keys a call's object has its parts. The first is the one that a grammar writes."""

    name: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")
    id: tuple[str, ...] = ("id",)


KEYS = Keys()


def read_calls(reading: Reading, keys: Keys = KEYS, *, bare: bool = False) -> Script[None]:
    """A call, several in a row, or a list of them. Raises NoCall where the first is none. bare: nothing but its keys
    says that it is one, so arguments have to be among them."""
    yield from reading.skip()
    listed = yield from reading.next_is("[")
    yield from reading.skip()
    yield from read_call(reading, keys, bare=bare)
    while True:
        yield from reading.skip(_BETWEEN)
        if (yield from reading.peek()) != "{" or not (yield from reading.attempt(read_call(reading, keys, bare=bare))):
            break
    if listed:
        yield from reading.next_is("]")


def read_call(reading: Reading, keys: Keys, *, bare: bool) -> Script[None]:
    """One object. It is a call once its name is one of the tools and its arguments are seen to be an object."""
    parts: dict[str, Any] = {}
    try:
        yield from _members(reading, keys, parts)
    except Ended:
        if reading.known(parts.get("name")) and not parts.get("begun"):
            _begin(reading, parts)
        raise
    if not parts.get("begun"):
        if bare and "arguments" not in parts:
            raise NoCall
        _begin(reading, parts)
        reading.argue(json.dumps(parts.get("arguments") or {}, ensure_ascii=False))


def _members(reading: Reading, keys: Keys, parts: dict[str, Any]) -> Script[None]:
    yield from reading.expect("{")
    yield from reading.skip()
    more = not (yield from reading.next_is("}"))
    while more:
        yield from reading.skip()
        key = yield from reading.json_value()
        if "name" not in parts and key not in (*keys.name, *keys.id, *keys.arguments, "type"):
            raise NoCall  # some other object, which need not be held back to its end
        yield from reading.skip()
        yield from reading.expect(":")
        yield from reading.skip()
        yield from _member(reading, keys, parts, key)
        yield from reading.skip()
        more = (yield from reading.expect(",", "}")) == ","


def _member(reading: Reading, keys: Keys, parts: dict[str, Any], key: Any) -> Script[None]:
    if key in keys.arguments and "arguments" not in parts and not parts.get("begun"):
        if reading.known(parts.get("name")) and (yield from reading.peek()) == "{":
            _begin(reading, parts)
            yield from reading.json(reading.argue)
        else:
            parts["arguments"] = _object((yield from reading.json_value()))
        return
    value = yield from reading.json_value()
    if key in keys.name and not parts.get("begun"):
        if not reading.known(value):
            raise NoCall
        parts["name"] = value
    elif key in keys.id and isinstance(value, str | int):
        parts["id"] = str(value)


def _object(value: Any) -> dict[str, Any]:
    """Arguments that are no object as such: models also write them as a string that holds JSON, or as null."""
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError):
            raise NoCall from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise NoCall
    return value


def _begin(reading: Reading, parts: dict[str, Any]) -> None:
    if not reading.known(parts.get("name")):
        raise NoCall
    reading.begin(parts["name"], parts.get("id", ""))
    parts["begun"] = True


def call_rule(lark: Lark, tools: Tools, keys: Keys = KEYS) -> str:
    """One call's object, of any of the tools, spaced as `json.dumps` does and chat templates do."""
    bodies = [
        f'{quoted(f"""{inside(name)}", "{keys.arguments[0]}": """)} {lark.arguments(schema)}'
        for name, schema in tools.parameters.items()
    ]
    return f'{quoted(f"""{{"{keys.name[0]}": """ + chr(34))} {lark.any_of(bodies)} "}}"'
