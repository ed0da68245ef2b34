"""`--template "Translate: {text}"`: a prompt with names of fields in it. Pure.

Names are looked up as they stand: `{a.b}` is the field "a.b", and nothing of a value can be reached by a name. `{{` and
`}}` are braces.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any


class UnknownFieldError(ValueError):
    """The template names a field that is not there."""


@dataclass(frozen=True, slots=True)
class Template:
    """parts: what stands before a field, and its name, None behind the last one."""

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises ValueError for what is none, with what is wrong."""
        try:
            found = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"{error}; for a brace write it twice") from error
        for _, name, form, conversion in found:
            if name == "":
                raise ValueError("{} has no name; write the field's name between the braces")
            if form or conversion:
                raise ValueError(f"{{{name}…}} has more than a name between its braces; for a brace write it twice")
        parts = tuple((before, name) for before, name, _, _ in found)
        if not any(name for _, name in parts):
            raise ValueError("it names no field, so that all lines would ask the same; write {NAME}")
        return cls(text, parts)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for _, name in self.parts if name))

    def check(self, there: Iterable[str]) -> None:
        """Raises UnknownFieldError unless all of its fields are there."""
        known = list(there)
        for name in self.names:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                meant = f"did you mean {{{near[0]}}}? " if near else ""
                listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
                raise UnknownFieldError(f"there is no field {name!r}; {meant}there are: {listed or 'none'}")

    def fill(self, fields: Mapping[str, Any]) -> str:
        """Raises UnknownFieldError."""
        self.check(fields)
        return "".join(before + (_text(fields[name]) if name else "") for before, name in self.parts)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)
