"""Calls written as Python's: `[f(a=1), g(b="x")]`."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, Schema, quoted
from rbee_remote.worker.dialects.reading import Ended, NoCall, Reading, Script

_NAMES = {"true": True, "false": False, "null": None}


def read_list(reading: Reading) -> Script[None]:
    """A list of calls. Raises NoCall where the first is none."""
    yield from reading.expect("[")
    yield from read_one(reading)
    while (yield from reading.follows(",")):
        if not (yield from reading.attempt(read_one(reading), ",")):
            return
    yield from reading.follows("]")


def read_one(reading: Reading, suffix: str = "") -> Script[None]:
    """One call. suffix: of its name."""
    yield from reading.skip()
    name = yield from reading.tool()
    yield from reading.expect(f"{suffix}(")
    arguments = yield from _arguments(reading, name)
    reading.begin(name)
    reading.argue(json.dumps(arguments, ensure_ascii=False))


def _arguments(reading: Reading, name: str) -> Script[dict[str, Any]]:
    """Up to the closing bracket: the first with which it is Python."""
    text = ""
    parts: list[str] = []
    while True:
        try:
            yield from reading.until(parts.append, ")")
        except Ended:
            _cut_off(reading, name, text + "".join(parts))
            raise
        text += "".join(parts) + ")"
        parts.clear()
        found = _parsed(f"f({text}")
        if found is not None:
            return found


def _cut_off(reading: Reading, name: str, text: str) -> None:
    """A call whose end is missing: the arguments up to one of the commas, an object that is not closed."""
    reading.begin(name)
    for comma in reversed(list(re.finditer(",", text))[-100:]):
        found = _parsed(f"f({text[: comma.start()]})")
        if found:
            reading.argue(json.dumps(found, ensure_ascii=False)[:-1])
            return


def _parsed(text: str) -> dict[str, Any] | None:
    """The named arguments; None where it is not Python. Raises NoCall where it is something else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know stays as it is
            call = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise NoCall
    return {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {str(_value(key)): _value(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case _:
            raise NoCall


def list_rule(lark: Lark, tools: Tools) -> str:
    """A list of calls. Values are JSON, which Python reads but for three names."""
    call = lark.any_of([_call_rule(lark, name, schema) for name, schema in tools.parameters.items()])
    return f'"[" {call}{lark.again(quoted(", ") + " " + call, tools)} "]"'


def _call_rule(lark: Lark, name: str, schema: Schema) -> str:
    """Required arguments, then any of the others, as declared."""
    properties = schema.get("properties")
    properties = properties if isinstance(properties, dict) else {}
    required = [key for key in schema.get("required", ()) if key in properties]
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}

    def pair(key: str) -> str:
        value = properties[key]
        return f"{quoted(f'{key}=')} {lark.json({**value, **shared} if isinstance(value, dict) else value)}"

    must = ' ", " '.join(map(pair, required))
    others = [pair(key) for key in properties if key not in required]
    if must:
        may = " ".join(f'(", " {other})?' for other in others)
    else:  # the one that comes first has no comma before it
        tails = [[other, *(f'(", " {later})?' for later in others[at + 1 :])] for at, other in enumerate(others)]
        may = f"({' | '.join(map(' '.join, tails))})?" if tails else ""
    return f"{quoted(f'{name}(')} {must} {may} {quoted(')')}"
