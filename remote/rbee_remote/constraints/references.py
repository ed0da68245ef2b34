"""Where the references of a JSON schema lead: `$ref` and its kin, by `$id`, `$anchor` and JSON pointer."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from typing import Any

#: Keywords whose value is a schema, a list of schemas, or schemas by name.
ONE = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
LIST = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
NAMED = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")


class LostReferenceError(ValueError):
    """Why a reference cannot be followed."""


class References:
    """Of one schema. Places in it are JSON pointers, "" for the whole."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._bases: dict[str, str] = {}  # place of a schema to the URI that its references start from
        self._places: dict[str, str] = {}  # URI, with an anchor or without, to a place
        self._dynamic: dict[str, list[str]] = {}
        self._scan()

    def resolve(self, reference: str, place: str) -> tuple[str, Any]:
        """The place that a reference at `place` leads to, and the schema there. Raises LostReferenceError."""
        whole = urllib.parse.urljoin(self._base(place), reference) if reference else self._base(place)
        uri, _, fragment = whole.partition("#")
        fragment = urllib.parse.unquote(fragment)
        if fragment and not fragment.startswith("/"):
            uri, fragment = f"{uri}#{fragment}", ""
        if uri not in self._places:
            raise LostReferenceError(f"{reference!r} leads nowhere; only references inside the schema are followed")
        return self._follow(self._places[uri], fragment, reference)

    def resolve_dynamic(self, reference: str, place: str) -> tuple[str, Any]:
        """As `resolve`. What it leads to must not depend on the way it was reached."""
        anchor = reference.partition("#")[2]
        if len(self._dynamic.get(anchor, ())) > 1:
            raise LostReferenceError(f"{reference!r} could lead to several places")
        return self.resolve(reference, place)

    def _follow(self, start: str, pointer: str, reference: str) -> tuple[str, Any]:
        place, value = "", self._root
        for word in [*start.split("/")[1:], *pointer.split("/")[1:]]:
            name = word.replace("~1", "/").replace("~0", "~")
            try:
                value = value[int(name)] if isinstance(value, list) else value[name]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise LostReferenceError(f"{reference!r} leads nowhere: there is no {word!r}") from error
            place = f"{place}/{escaped(name)}"
        if not isinstance(value, dict | bool):
            raise LostReferenceError(f"{reference!r} leads to something that is no schema")
        return place, value

    def _base(self, place: str) -> str:
        while place not in self._bases and place:
            place = place.rpartition("/")[0]
        return self._bases.get(place, "")

    def _scan(self) -> None:
        self._places[""] = ""
        todo: list[tuple[str, Any, str]] = [("", self._root, "")]
        while todo:
            place, schema, base = todo.pop()
            if not isinstance(schema, dict):
                continue
            if isinstance(own := schema.get("$id", schema.get("id")), str):
                base = urllib.parse.urljoin(base, own).rstrip("#")
                self._places.setdefault(base.partition("#")[0], place)
                if base.partition("#")[2]:  # before draft 2019-09 an $id could be an anchor
                    self._places.setdefault(base, place)
            self._bases[place] = base.partition("#")[0]
            for word in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := schema.get(word), str):
                    self._places.setdefault(f"{self._bases[place]}#{name}", place)
                    if word == "$dynamicAnchor":
                        self._dynamic.setdefault(name, []).append(place)
            todo += [(at, part, self._bases[place]) for at, part in subschemas(schema, place)]


def subschemas(schema: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """Of one schema, with their places."""
    for word, value in schema.items():
        at = f"{place}/{word}"
        if isinstance(value, dict) and word in NAMED:
            yield from ((f"{at}/{escaped(name)}", part) for name, part in value.items())
        elif isinstance(value, list) and word in LIST:
            yield from ((f"{at}/{index}", part) for index, part in enumerate(value))
        elif isinstance(value, dict | bool) and word in ONE:
            yield at, value


def escaped(name: str) -> str:
    """As a word of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
