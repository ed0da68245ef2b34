"""Errors about a schema, and the places that they name."""

from __future__ import annotations


class SchemaError(ValueError):
    """What cannot be had, and where."""


def shown(place: str) -> str:
    """A JSON pointer for errors."""
    pointer = f"#{place}"
    return pointer if len(pointer) <= 120 else f"{pointer[:117]}..."
