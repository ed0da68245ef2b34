"""A JSON schema (draft 2020-12, and what differs in older ones) made into one of which llguidance enforces everything.

Rules
- What is written fits what was read: every value of it is one of the schema's. Some of the schema's may be missing, an
  object's properties in another order for instance, or those that it neither names nor forbids.
- A keyword is enforced, or `unsupported`: an error with its place, and where the caller is not strict, a warning.
- What is no schema at all is an error for everybody.
- A schema's own answer, without its references, is at most `_NESTED` levels deep; deeper ones become definitions,
  because llguidance reads no more than 128 levels of JSON.
"""

from __future__ import annotations

from typing import Any

from rbee_remote.constraints import shapes
from rbee_remote.constraints.finite import endless
from rbee_remote.constraints.part import Part
from rbee_remote.constraints.places import SchemaError, shown
from rbee_remote.constraints.references import LostReferenceError, References

_NESTED = 20
#: Schemas within a schema, those that are reached in two ways counted twice.
MAX_PARTS = 200_000


def normalise(schema: Any, *, strict: bool) -> tuple[dict[str, Any], Normaliser]:
    """Raises SchemaError."""
    normaliser = Normaliser(schema, strict=strict)
    return normaliser.run(), normaliser


class Normaliser:
    """warnings: what is not enforced. places: `id` of each schema that was written to where it was read."""

    def __init__(self, root: Any, *, strict: bool) -> None:
        shapes.check(root, "")
        self._root = root
        self._strict = strict
        self._references = References(root)
        self._names: dict[tuple[str, bool], str] = {}
        self._todo: list[tuple[str, Any, str, bool]] = []
        self._parts = 0
        self.defs: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.warnings: list[str] = []
        self.places: dict[int, str] = {}

    def run(self) -> dict[str, Any]:
        written = self.schema(self._root, "", closed=True)
        self._define_all()
        if written is False:
            raise SchemaError("#: no value fits")
        root = {} if written is True else written
        for name in endless(self.defs, root):
            if not name or self._is_root_needed(name, root):
                raise SchemaError(f"{shown(self.origins.get(name, ''))}: no value fits, because it would never end")
        return {**root, "$defs": self.defs} if self.defs else root

    def _is_root_needed(self, name: str, root: dict[str, Any]) -> bool:
        return root.get("$ref") == f"#/$defs/{name}"

    def schema(self, schema: Any, place: str, *, closed: bool, depth: int = 0) -> Any:
        """closed: whether it alone decides about the value, so that nothing it does not name has to be allowed."""
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise SchemaError(f"{shown(place)}: the schema is too large once its references are followed")
        if isinstance(schema, bool):
            return schema
        if depth >= _NESTED:
            return {"$ref": self.define(place, schema, closed=closed)}
        written = Part(self, schema, place, depth, closed=closed).write()
        if isinstance(written, dict):
            self.places[id(written)] = place
        return written

    def reference(self, word: str, reference: Any, place: str, *, closed: bool) -> str:
        if not isinstance(reference, str):
            raise SchemaError(f"{shown(place)}: {word} must be a string")
        find = self._references.resolve if word == "$ref" else self._references.resolve_dynamic
        try:
            target, schema = find(reference, place)
        except LostReferenceError as error:
            raise SchemaError(f"{shown(place)}: {word} {error}") from error
        return self.define(target, schema, closed=closed)

    def target(self, word: str, reference: Any, place: str) -> tuple[str, Any]:
        """What stands there. Raises LostReferenceError."""
        if not isinstance(reference, str):
            raise LostReferenceError("must be a string")
        find = self._references.resolve if word == "$ref" else self._references.resolve_dynamic
        return find(reference, place)

    def define(self, place: str, schema: Any, *, closed: bool) -> str:
        name = self._names.get((place, closed))
        if name is None:
            shapes.check(schema, place)
            name = self._names[place, closed] = f"d{len(self._names)}"
            self.origins[name] = place
            self._todo.append((name, schema, place, closed))
        return f"#/$defs/{name}"

    def resolve(self, reference: str) -> Any:
        """What was written for one of our own references; True where it is still being written."""
        self._define_all()
        return self.defs.get(reference.rpartition("/")[2], True)

    def _define_all(self) -> None:
        while self._todo:
            name, schema, place, closed = self._todo.pop()
            written = schema if isinstance(schema, bool) else Part(self, schema, place, 0, closed=closed).write()
            self.defs[name] = written
            if isinstance(written, dict):
                self.places[id(written)] = place

    def unsupported(self, place: str, word: str, why: str) -> None:
        """Returns where the keyword is to be left out."""
        message = f"{shown(place)}: {word} is not enforced: {why}"
        if self._strict:
            raise SchemaError(message)
        self.warnings.append(message)
