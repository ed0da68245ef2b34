"""One schema of a schema, keyword by keyword."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rbee_remote.constraints import disjoint, library, objects
from rbee_remote.constraints.patterns import FORMATS, LIBRARY_FORMATS, is_writable, portable
from rbee_remote.constraints.places import SchemaError, shown
from rbee_remote.constraints.references import escaped
from rbee_remote.constraints.values import MAX_EXACT, has_type, numbers, plain, texts

if TYPE_CHECKING:
    from rbee_remote.constraints.schema import Normaliser

#: Keywords that are copied, with what their values are.
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
#: The table in the docs.
ENFORCED = (
    "$anchor", "$defs", "$dynamicAnchor", "$dynamicRef", "$id", "$recursiveRef", "$ref", "additionalItems",
    "additionalProperties", "allOf", "anyOf", "const", "definitions", "dependencies", "dependentRequired",
    "dependentSchemas", "enum", "items", "patternProperties", "prefixItems", "properties", "required", "type",
    *_NUMBERS, *_COUNTS,
)  # fmt: skip
#: Enforced in the forms that the docs name, else unsupported.
PARTLY = (
    "contains", "format", "if", "maxContains", "minContains", "not", "oneOf", "pattern", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties", "uniqueItems",
)  # fmt: skip


class Part:
    """One schema on its way."""

    def __init__(self, owner: Normaliser, schema: dict[str, Any], place: str, depth: int, *, closed: bool) -> None:
        self.owner = owner
        self.schema = schema
        self.place = place
        self._depth = depth
        self._closed = closed
        #: Its own assertions, what was applied in place and has to stand before them, and what comes after.
        self.own: dict[str, Any] = {}
        self._before: list[Any] = []
        self._after: list[Any] = []
        self._never = False
        #: All properties that there may be, where `propertyNames` lists them.
        self.listed: dict[str, Any] | None = None

    def write(self) -> Any:
        applied = [word for word in self.schema if word in _APPLIED]
        asserting = [word for word in self.schema if word in _ASSERTING]
        closed = self._closed and self._is_one(applied, asserting)
        seen_own = False
        for word in self.schema:
            if word in _APPLIED:
                (self._after if seen_own else self._before).extend(self._apply(word, closed=closed))
            elif word in _ASSERTING:
                seen_own = seen_own or word in ("properties", "required", "patternProperties", "additionalProperties")
        self._assert(asserting)
        if self._closed and not closed:
            objects.close(self)
        objects.check_counts(self)
        return self._assembled()

    def _is_one(self, applied: list[str], asserting: list[str]) -> bool:
        """Whether it is nothing but another schema, or a choice of some, which then see to what is allowed."""
        if len(applied) != 1 or asserting or applied[0] in objects.APPLIED:
            return False
        value = self.schema[applied[0]]
        return applied[0] != "allOf" or (isinstance(value, list) and len(value) == 1)

    @property
    def has_applied(self) -> bool:
        """Whether other schemas are applied to the same value."""
        return any(word in self.schema for word in _APPLIED)

    def sub(self, schema: Any, *words: str | int, closed: bool) -> Any:
        """The schema at these words from here."""
        place = "/".join([self.place, *(escaped(str(word)) for word in words)])
        return self.owner.schema(schema, place, closed=closed, depth=self._depth + 1)

    def also(self, schema: Any) -> None:
        """Holds besides."""
        self._after.append(schema)

    def unsupported(self, word: str, why: str) -> None:
        self.owner.unsupported(self.place, word, why)

    def wrong(self, word: str, what: str) -> SchemaError:
        return SchemaError(f"{shown(self.place)}: {word} {what}")

    def _assembled(self) -> Any:
        if self._never or self.own.get("enum") == [] or self.own.get("type") == []:
            return False
        parts = [*self._before, *([self.own] if self.own else []), *self._after]
        parts = [part for part in parts if part is not True and part != {}]
        if any(part is False for part in parts):
            return False
        if not parts:
            return {}
        return parts[0] if len(parts) == 1 else {"allOf": parts}

    def _apply(self, word: str, *, closed: bool) -> list[Any]:
        """What a keyword applies to the same value."""
        value = self.schema[word]
        if word in ("$ref", "$dynamicRef", "$recursiveRef"):
            return [{"$ref": self.owner.reference(word, value, self.place, closed=closed)}]
        if word in ("allOf", "anyOf", "oneOf"):
            parts = [self.sub(part, word, index, closed=closed) for index, part in enumerate(value)]
            return parts if word == "allOf" else [self._any_of(word, parts)]
        return objects.apply(self, word)

    def _any_of(self, word: str, parts: list[Any]) -> Any:
        if word == "oneOf":
            parts = self._one_of(self.schema[word], parts)
        kept = [part for part in parts if part is not False]
        if True in kept or {} in kept:
            return True
        return kept[0] if len(kept) == 1 else {"anyOf": kept} if kept else False

    def _one_of(self, read: list[Any], parts: list[Any]) -> list[Any]:
        """Where a value might fit two, they are compared as they were read, not closed."""
        open_parts = [self.sub(part, "oneOf", index, closed=False) for index, part in enumerate(read)]
        if both := disjoint.overlapping(open_parts, self.owner.resolve):
            self.unsupported("oneOf", f"a value may fit both its alternatives {both[0]} and {both[1]}")
        return parts

    def _assert(self, words: list[str]) -> None:
        for word in words:
            value = self.schema[word]
            if word in _NUMBERS:
                self._number(word, value)
            elif word in _COUNTS:
                self._count(word)
            elif word in ("items", "additionalItems", "prefixItems"):
                pass
            elif word in objects.WORDS:
                objects.check(self, word)
            else:
                _HANDLERS[word](self, value)
        if self.listed is not None:
            self.own |= {"properties": self.listed, "additionalProperties": False}
        self._items()
        self._values()
        self._lengths()

    def _count(self, word: str) -> None:
        count = self.count(word)
        if count <= MAX_EXACT:
            self.own[word] = count
        elif word.startswith("min"):
            raise self.wrong(word, "is more than any answer has, no value fits")

    def count(self, word: str) -> int:
        value = self.schema[word]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
            raise self.wrong(word, "must be an integer, 0 or more")
        return int(value)

    def _lengths(self) -> None:
        for least, most in (("minLength", "maxLength"), ("minItems", "maxItems"), ("minProperties", "maxProperties")):
            if self.own.get(least, 0) > self.own.get(most, math.inf):
                raise self.wrong(least, f"is larger than {most}, no value fits")

    def _number(self, word: str, value: Any) -> None:
        if isinstance(value, bool) and word.startswith("exclusive"):  # draft 4
            bound = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}[word]
            if value and bound in self.schema:
                self._number(word, self.schema[bound])
            return
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(word, "must be a number")
        if word == "multipleOf" and value <= 0:
            raise self.wrong(word, "must be more than 0")
        if abs(value) > MAX_EXACT:
            self.unsupported(word, f"numbers beyond {MAX_EXACT} are not")
        else:
            self.own[word] = plain(value)

    def type(self, value: Any) -> None:
        names = [value] if isinstance(value, str) else value
        known = (*disjoint.ALL_TYPES, "integer")
        if not isinstance(names, list) or not names or any(name not in known for name in names):
            raise self.wrong("type", f"must be one or more of {', '.join(known)}")
        self.own["type"] = value

    def const(self, value: Any) -> None:
        values = [value]
        if "enum" in self.schema:
            values = [each for each in self.schema["enum"] if disjoint.key(plain(each)) == disjoint.key(plain(value))]
        self.own["enum"] = [plain(each) for each in values]

    def enum(self, values: Any) -> None:
        if not values:
            raise self.wrong("enum", "is empty, no value fits")
        if "const" not in self.schema:
            self.own["enum"] = [plain(value) for value in values]

    def pattern(self, value: Any) -> None:
        if not isinstance(value, str):
            raise self.wrong("pattern", "must be a string")
        if reason := library.pattern_trouble(portable(value)):
            self.unsupported("pattern", reason)
        else:
            self._pattern(portable(value))

    def _pattern(self, pattern: str) -> None:
        if "pattern" in self.own:
            self.also({"pattern": pattern})
        else:
            self.own["pattern"] = pattern

    def format(self, value: Any) -> None:
        if not isinstance(value, str):
            raise self.wrong("format", "must be a string")
        if value in FORMATS:
            self._pattern(FORMATS[value])
        elif value in LIBRARY_FORMATS:
            self.own["format"] = value
        elif "string" in disjoint.types_of({key: part for key, part in self.schema.items() if key == "type"}):
            known = ", ".join(sorted([*FORMATS, *LIBRARY_FORMATS]))
            self.unsupported("format", f"{value[:40]!r} is not known; {known} are")

    def unique_items(self, value: Any) -> None:
        few = self.schema.get("maxItems", 2)
        if value is True and not (isinstance(few, int) and few <= 1):
            self.unsupported("uniqueItems", "a grammar cannot remember the items before")

    def contains(self, _: Any) -> None:
        if self.schema.get("minContains") != 0 or "maxContains" in self.schema:
            self.unsupported("contains", "a grammar cannot count some of the items")

    def nothing(self, _: Any) -> None:
        """What another keyword looks at."""

    def unevaluated_items(self, value: Any) -> None:
        if value is True or "items" in self.schema:
            return
        if any(word in self.schema for word in (*_APPLIED, "contains")):
            self.unsupported("unevaluatedItems", "not beside keywords that may have evaluated items")
        else:
            self.own["items"] = self.sub(value, "unevaluatedItems", closed=True)

    def _items(self) -> None:
        first, rest, word = self.schema.get("prefixItems"), self.schema.get("items"), "prefixItems"
        if isinstance(rest, list):  # before draft 2020-12
            first, rest, word = rest, self.schema.get("additionalItems"), "items"
        if first is not None:
            self.own["prefixItems"] = [self.sub(part, word, index, closed=True) for index, part in enumerate(first)]
        if rest is not None:
            self.own["items"] = self.sub(rest, "additionalItems" if word == "items" else "items", closed=True)
        alone = self._closed and not self.has_applied
        if "items" not in self.own and first and alone and self.own.get("minItems", 0) <= len(first):
            self.own["items"] = False

    def _values(self) -> None:
        """Those of `enum` that have the right type; `type` has said all it can then."""
        if "enum" not in self.own:
            return
        given = self.own.pop("type", None)
        types = set([given] if isinstance(given, str) else given or (*disjoint.ALL_TYPES, "integer"))
        kept = [value for value in self.own["enum"] if has_type(value, types)]
        self._never = self._never or not kept
        self.own["enum"] = kept
        why = ""
        if any(abs(number) > MAX_EXACT for value in kept for number in numbers(value)):
            why = f"numbers beyond {MAX_EXACT} are not"
        elif not all(is_writable(text) for value in kept for text in texts(value)):
            why = "control characters that JSON writes as \\u.... are not"
        if why:
            self.unsupported("enum" if "enum" in self.schema else "const", why)
            del self.own["enum"]


_HANDLERS = {
    "type": Part.type,
    "const": Part.const,
    "enum": Part.enum,
    "pattern": Part.pattern,
    "format": Part.format,
    "uniqueItems": Part.unique_items,
    "contains": Part.contains,
    "minContains": Part.nothing,
    "maxContains": Part.nothing,
    "unevaluatedItems": Part.unevaluated_items,
}
_APPLIED = ("$ref", "$dynamicRef", "$recursiveRef", "allOf", "anyOf", "oneOf", *objects.APPLIED)
_ASSERTING = (
    *_HANDLERS, *_NUMBERS, *_COUNTS, "items", "prefixItems", *objects.WORDS,
)  # fmt: skip
