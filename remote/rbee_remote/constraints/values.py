"""Values that a schema lists."""

from __future__ import annotations

from typing import Any

from rbee_remote.constraints import disjoint

#: Numbers up to this are exact in llguidance, which computes with floats of 64 bits.
MAX_EXACT = 2**53


def plain(value: Any) -> Any:
    """Whole numbers as integers, in a list or object, too: what llguidance takes for the same value."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT:
        return int(value)
    if isinstance(value, list):
        return [plain(part) for part in value]
    return {name: plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def has_type(value: Any, types: set[str]) -> bool:
    name = disjoint.type_of(value)
    return name in types or (name == "number" and "integer" in types and isinstance(value, int))


def numbers(value: Any) -> list[float]:
    if isinstance(value, list | dict):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in numbers(part)]
    return [value] if disjoint.type_of(value) == "number" else []


def texts(value: Any) -> list[str]:
    """Strings in it, names not counted."""
    if isinstance(value, list | dict):
        parts = value.values() if isinstance(value, dict) else value
        return [text for part in parts for text in texts(part)]
    return [value] if isinstance(value, str) else []
