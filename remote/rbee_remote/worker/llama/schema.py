"""A JSON schema as a grammar, by llama-cpp-python's converter.

Not everything in a schema has a grammar: ranges of numbers, `uniqueItems`, `not` and the like are not enforced.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from llama_cpp.llama_grammar import PRIMITIVE_RULES, BuiltinRule, SchemaConverter

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.worker.constraints import json_schema
from rbee_remote.worker.constraints.json_schema import SchemaError

#: Parts of a schema that are converted, those that a reference leads to again counted again.
MAX_VISITS = 5_000

#: Keywords that say what a value looks like. A schema with none of them is for any value.
_SHAPING = {
    "$ref", "additionalProperties", "allOf", "anyOf", "const", "enum", "format", "items", "maxLength", "minLength",
    "oneOf", "pattern", "prefixItems", "properties", "type",
}  # fmt: skip
#: A string of JSON has no control characters.
_CHARACTER = BuiltinRule(PRIMITIVE_RULES["char"].content.replace('[^"\\\\]', '[^"\\\\\\x00-\\x1F]', 1))

_FAILURES = (AssertionError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)


def to_grammar(schema: dict[str, Any]) -> str:
    """GBNF. Raises RemoteError USAGE naming json_schema."""
    try:
        json_schema.check(schema)
        return _convert(json.dumps(schema))
    except SchemaError as error:
        message = f"json_schema cannot be used: {error}"
        raise RemoteError(ErrorCode.USAGE, message, details={"field": "json_schema"}) from error


@functools.lru_cache(maxsize=32)
def _convert(text: str) -> str:
    """Of json_schema_to_gbnf, with the converter below."""
    converter = _Converter()
    try:
        converter.visit(converter.resolve_refs(json.loads(text), ""), "")
    except _FAILURES as error:
        reason = f"{error}"[:200] or type(error).__name__
        raise SchemaError(f"no grammar can be made of it: {reason}") from error
    return str(converter.format_grammar())


class _Converter(SchemaConverter):  # type: ignore[misc]  # the library has no types
    """The library's, but bounded; with quotes and backslashes in names and constants; and with references by what they
    refer to, not by their last word."""

    def __init__(self) -> None:
        super().__init__(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
        self._visits = 0
        self._definitions: dict[str, str] = {}  # reference to its rule

    def visit(self, schema: Any, name: str) -> str:
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise SchemaError("the schema is too large once its references are followed")
        if schema is True or (isinstance(schema, dict) and not schema.keys() & _SHAPING):
            value = self._add_primitive("value", PRIMITIVE_RULES["value"])
            return str(self._add_rule("root", value)) if not name else str(value)
        return str(super().visit(schema, name))

    def _resolve_ref(self, ref: str) -> str:
        if ref not in self._definitions:
            self._definitions[ref] = f"definition-{len(self._definitions)}"
            self._definitions[ref] = self.visit(self._refs[ref], self._definitions[ref])
        return self._definitions[ref]

    def _add_primitive(self, name: str, rule: BuiltinRule) -> str:
        return str(super()._add_primitive(name, _CHARACTER if name == "char" else rule))

    def _format_literal(self, literal: str) -> str:
        """literal: JSON, of a property's name or a constant."""
        readable = json.dumps(json.loads(literal), ensure_ascii=False)
        return super()._format_literal(readable.replace("\\", "\\\\"))  # type: ignore[no-any-return]
