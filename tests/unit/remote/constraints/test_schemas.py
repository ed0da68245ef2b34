"""Schemas with values that fit and values that do not, against `jsonschema`, and with answers made by chance."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from rbee_remote.constraints.disjoint import ALL_TYPES
from rbee_remote.constraints.part import ENFORCED, PARTLY
from rbee_remote.constraints.rules import json_rule
from rbee_remote.protocol import ErrorCode, RemoteError
from tests.answers import chance_answer, fits, json_fits

TEXT: dict[str, Any] = {"type": "string"}
INTEGER: dict[str, Any] = {"type": "integer"}
REFUSED: list[Any] = ["refused"]
#: A schema, values that fit it, and values that do not.
ROWS: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"type": ["string", "null"], "enum": ["celsius", None]}, ["celsius", None], ["Frozen"]),
    ({"type": ["array", "null"], "items": INTEGER}, [[1], None, []], [["a"], 1]),
    ({"type": "string", "pattern": "^yes|no$"}, ["yes", "yes sir", "say no"], ["maybe"]),
    ({"type": "string", "pattern": '^"a"$'}, ['"a"'], ["a"]),
    ({"type": "string", "pattern": "^[^x]+$"}, ["abc", 'a"b'], ["x"]),
    ({"type": "string", "pattern": "^[0-9]+\\.[0-9]+$"}, ["1.2"], ["1"]),
    ({"type": "string", "pattern": "^\\d+$"}, ["12"], ["a"]),
    ({"type": "string", "pattern": "^\\w\\s\\/\\$(?:a|b)$"}, ["x /$a"], ["x"]),
    ({"type": "string", "pattern": "a"}, ["xax"], ["x"]),
    ({"type": "string", "pattern": ""}, ["xax"], [1]),
    ({"type": "string", "pattern": "(?=a)"}, REFUSED, []),
    ({"type": "string", "pattern": "^[[&&x]+$"}, ["[&x"], ["y"]),
    (
        {
            "$defs": {"C": {"enum": ["red"]}},
            "type": "object",
            "properties": {"c": {"allOf": [{"$ref": "#/$defs/C"}]}},
            "required": ["c"],
        },
        [{"c": "red"}],
        [{"c": {}}],
    ),
    (
        {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "anyOf": [{"required": ["a"]}]},
        [{"a": 1}],
        ["x", {}],
    ),
    ({"minLength": 3, "pattern": "^[a-z]*$"}, ["abc", 1, None], ["ab"]),
    ({"allOf": [TEXT]}, ["a"], [{}]),
    ({"allOf": [{"const": 5}]}, [5], [{}]),
    ({"$ref": "#/$defs/S", "maxLength": 3, "$defs": {"S": TEXT}}, ["abc"], ["abcd"]),
    ({"type": "object", "required": ["b"], "properties": {"a": INTEGER}}, [{"a": 1, "b": 2}, {"b": 2}], [{"a": 1}]),
    ({"type": "object", "required": ["b"]}, [{"b": 2}], [{}]),
    (
        {"type": "object", "properties": {"a": INTEGER}, "additionalProperties": True},
        [{"a": 1, "z": "y"}, {"z": 1}],
        [{"a": "x"}, {"z": 1, "a": "x"}, b'{"\\u0061":"x"}'],
    ),
    (
        {"prefixItems": [TEXT, INTEGER], "items": {"type": "boolean"}, "type": "array"},
        [["a", 1, True], ["a"], []],
        [[1]],
    ),
    ({"type": "object", "properties": {"": INTEGER}, "required": [""]}, [{"": 1}], [1, {"": "a"}]),
    ({"type": "integer", "multipleOf": 3}, [9], [10]),
    ({"type": "number", "multipleOf": 0.5}, [1.5], [1.25]),
    ({"type": "object", "propertyNames": {"pattern": "^a"}}, [{"ab": 1}], [{"b": 1}]),
    (
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": INTEGER},
        [{"x": 1}, {"x": 1, "y": 2}, {}],
        [{"z": 1}, {"x": "a"}],
    ),
    ({"type": "object", "propertyNames": {"maxLength": 3}}, REFUSED, []),
    (
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}, "n": INTEGER, "s": TEXT},
            "required": ["k"],
            "if": {"properties": {"k": {"const": "a"}}},
            "then": {"required": ["n"]},
            "else": {"required": ["s"]},
        },
        [{"k": "a", "n": 1}, {"k": "b", "s": "x"}],
        [{"k": "a", "s": "x"}, {"k": "b", "n": 1}],
    ),
    ({"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"type": "integer"}}, ["ab", 3], ["a", 1.5, None]),
    ({"if": {"minLength": 3}, "then": {"pattern": "a"}}, REFUSED, []),
    ({"type": "integer", "minimum": 3, "maximum": 7}, [3, 7], [2, 8]),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5], [0, 1]),
    ({"type": "array", "contains": {"const": 1}}, REFUSED, []),
    ({"type": "array", "items": INTEGER, "contains": {"const": 1}, "minContains": 0}, [[2]], [["a"]]),
    ({"type": "object", "minProperties": 1, "additionalProperties": INTEGER}, [{"a": 1}], [{}]),
    ({"type": "object", "minProperties": 2, "additionalProperties": INTEGER}, REFUSED, []),
    ({"type": "object", "maxProperties": 1, "additionalProperties": INTEGER}, [{"a": 1}], [{"a": 1, "b": 2}]),
    (
        {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "dependentRequired": {"a": ["b"]}},
        [{"b": 1}, {"a": 1, "b": 2}, {}],
        [{"a": 1}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": INTEGER, "b": True},
            "dependentSchemas": {"a": {"properties": {"b": TEXT}, "required": ["b"]}},
        },
        [{"b": 1}, {"a": 1, "b": "x"}],
        [{"a": 1}, {"a": 1, "b": 2}],
    ),
    ({"type": "string", "format": "email"}, ["a@b.de"], ["a"]),
    ({"type": "string", "format": "ipv4"}, ["1.2.3.4"], ["1.2.3.400"]),
    ({"type": "string", "format": "uri"}, ["http://a.b/c?d#e"], ["a b"]),
    (
        {"type": "string", "format": "date-time"},
        ["2024-02-29T23:59:59.123+02:00", "2023-01-01T00:00:00Z"],
        ["2023-02-29T00:00:00Z", "2023-01-01"],
    ),
    (
        {"type": "string", "format": "date"},
        ["2024-02-29", "2023-12-31", "2000-02-29"],
        ["2023-02-29", "1900-02-29", "0000-01-01", "2023-04-31"],
    ),
    ({"type": "string", "format": "frob"}, REFUSED, []),
    ({"type": "integer", "format": "int64"}, [5], ["a"]),
    ({"type": "array", "minItems": 2}, [[1, "a"]], [[1]]),
    ({"minItems": 2}, [[1, "a"], 5], [[1]]),
    ({"type": "string", "enum": ["a", 1, None]}, ["a"], [1]),
    ({"type": "integer", "enum": ["a", 1.0, 2.5]}, [1], ["a", 2.5]),
    ({"oneOf": [INTEGER, {"type": "number"}]}, REFUSED, []),
    ({"oneOf": [INTEGER, TEXT]}, [1, "a"], [None]),
    (
        {
            "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
            "$defs": {
                "A": {"type": "object", "properties": {"t": {"const": "a"}, "x": INTEGER}, "required": ["t"]},
                "B": {"type": "object", "properties": {"t": {"const": "b"}, "y": TEXT}, "required": ["t"]},
            },
        },
        [{"t": "a", "x": 1}, {"t": "b", "y": "1"}],
        [{"t": "a", "y": "1"}, {"t": "c"}],
    ),
    ({"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 5}]}, [3, 5], [4]),
    (
        {"oneOf": [{"properties": {"a": INTEGER}, "type": "object"}, {"properties": {"b": INTEGER}, "type": "object"}]},
        REFUSED,
        [],
    ),
    ({"type": "object", "patternProperties": {"^x-": TEXT}}, [{"x-a": "b"}, {"y": 1}], [{"x-a": 1}]),
    ({"type": "object", "patternProperties": {"^x-": TEXT}, "additionalProperties": False}, [{"x-a": "b"}], [{"y": 1}]),
    (INTEGER, [12345678901234567890123], [1.5]),
    (
        {"type": "object", "properties": {"reason": TEXT, "answer": TEXT}, "required": ["answer"]},
        [{"reason": "r", "answer": "a"}, {"answer": "a"}],
        [{"reason": "r"}, {"answer": "a", "reason": "r"}],
    ),
    (
        {"type": "object", "properties": {"n": {"$ref": "#"}, "v": INTEGER}, "required": ["v"]},
        [{"n": {"v": 1}, "v": 2}],
        [{"n": {}, "v": 1}],
    ),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": INTEGER}}, [1], ["a"]),
    ({"$ref": "#/$defs/a%20b", "$defs": {"a b": INTEGER}}, [1], ["a"]),
    ({"anyOf": [INTEGER, {"type": "array", "items": {"$ref": "#/anyOf/0"}}]}, [1, [1, 2]], [["a"]]),
    ({"$ref": "#x", "$defs": {"q": {"$anchor": "x", **INTEGER}}}, [1], ["a"]),
    ({"$id": "http://e.x/s", "$ref": "t", "$defs": {"q": {"$id": "t", **INTEGER}}}, [1], ["a"]),
    (
        {"properties": {"a": INTEGER, "b": {"$ref": "#/properties/a"}}, "type": "object"},
        [{"a": 1, "b": 2}],
        [{"b": "x"}],
    ),
    ({"properties": {"a": False, "b": INTEGER}, "type": "object"}, [{"b": 1}, {}], [{"a": 1}]),
    ({"properties": {"$ref": INTEGER}, "type": "object"}, [{"$ref": 1}], [{"$ref": "a"}]),
    ({"properties": {"a": {"default": {"minItems": "x"}, **INTEGER}}, "type": "object"}, [{"a": 1}], [{"a": "x"}]),
    ({"type": "string", "minLength": 2.0}, ["ab"], ["a"]),
    ({"not": {"type": "string"}}, [1, None, []], ["a"]),
    ({"not": {"const": 1}}, REFUSED, []),
    (
        {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "not": {"required": ["a", "b"]}},
        [{"a": 1}, {"b": 1}, {}],
        [{"a": 1, "b": 1}],
    ),
    ({"uniqueItems": True, "type": "array"}, REFUSED, []),
    ({"uniqueItems": False, "type": "array"}, [[1, 1]], [1]),
    (
        {
            "type": "object",
            "allOf": [{"properties": {"a": INTEGER}, "required": ["a"]}, {"properties": {"b": TEXT}}],
            "unevaluatedProperties": False,
        },
        [{"a": 1, "b": "x"}, {"a": 1}],
        [{"a": 1, "c": 1}, {"b": "x"}],
    ),
    (
        {"allOf": [{"type": "object", "properties": {"a": INTEGER}}, {"type": "object", "properties": {"b": TEXT}}]},
        [{"a": 1, "b": "x"}],
        [{"a": "x"}, {"c": 1}],
    ),
    ({"properties": {"a": {"enum": []}}, "required": ["a"], "type": "object"}, REFUSED, []),
    (
        {"properties": {"a": {"type": "string", "minLength": 3, "maxLength": 1}}, "required": ["a"], "type": "object"},
        REFUSED,
        [],
    ),
    (
        {
            "properties": {"a": {"type": "string", "pattern": "^a{5}$", "maxLength": 1}},
            "required": ["a"],
            "type": "object",
        },
        REFUSED,
        [],
    ),
    ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, REFUSED, []),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, REFUSED, []),
    ({"allOf": [INTEGER, TEXT]}, REFUSED, []),
    ({"type": "integer", "minimum": 5, "maximum": 3}, REFUSED, []),
    ({"const": {"a": [1.0, "x"]}}, [{"a": [1, "x"]}], [{"a": [2, "x"]}]),
    ({"enum": [True]}, [True], [1]),
    ({"enum": [1]}, [1], [True]),
    ({}, [1, {"a": []}], [b"x"]),
    ({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "type": "null"}, [None], [1]),
    ({"$dynamicRef": "#n", "$defs": {"q": {"$dynamicAnchor": "n", **INTEGER}}}, [1], ["a"]),
    ({"items": [INTEGER, TEXT], "additionalItems": False, "type": "array"}, [[1, "a"]], [[1, "a", 2], ["a"]]),
    ({"enum": [9007199254740993]}, REFUSED, []),
    ({"const": 0.1}, [0.1], [0.2]),
    ({"const": -2.5}, [-2.5], [2.5]),
    (
        {"type": "object", "properties": {"a": INTEGER}, "patternProperties": {"^a": {"minimum": 3}}},
        [{"a": 3}],
        [{"a": 1}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": INTEGER, "b": INTEGER, "c": INTEGER},
            "minProperties": 1,
            "additionalProperties": False,
        },
        [{"a": 1}, {"b": 1, "c": 2}],
        [{}],
    ),
    (
        {"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": INTEGER, "maxProperties": 2},
        [{"a": 1}, {"a": 1, "b": 2}],
        [{"c": 1}, {"a": "x"}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {}, "b": {}, "c": {}},
            "maxProperties": 2,
            "additionalProperties": False,
        },
        REFUSED,
        [],
    ),
    ({"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "minProperties": 1}, [{"a": 1}], [{}]),
    ({"$ref": "http://elsewhere/x"}, REFUSED, []),
    ({"type": "frob"}, REFUSED, []),
    ({"minLength": "x"}, REFUSED, []),
    ({"properties": 3}, REFUSED, []),
]


def validator(schema: dict[str, Any]) -> Any:
    if "additionalItems" in schema:
        return jsonschema.Draft7Validator(schema)
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def rule(schema: dict[str, Any], *, strict: bool = True) -> Any:
    return json_rule(schema, strict=strict, where="json_schema")


ACCEPTED = [row for row in ROWS if row[1] is not REFUSED]


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # Python's re about [[ and &&
@pytest.mark.parametrize(("schema", "good", "wrong"), ACCEPTED, ids=[json.dumps(row[0])[:80] for row in ACCEPTED])
def test_what_is_accepted_is_enforced(schema: dict[str, Any], good: list[Any], wrong: list[Any]) -> None:
    assert [value for value in good if not validator(schema).is_valid(value)] == []  # the table is right
    assert [value for value in good if not json_fits(schema, value)] == []
    assert [value for value in wrong if json_fits(schema, value)] == []
    chance = random.Random(1)
    for _ in range(20):
        answer = chance_answer(rule(schema), chance)
        assert answer is None or validator(schema).is_valid(json.loads(answer)), answer


@pytest.mark.parametrize("schema", [row[0] for row in ROWS if row[1] is REFUSED], ids=json.dumps)
def test_what_cannot_be_enforced_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match=r"^json_schema cannot be used: #") as caught:
        rule(schema)
    assert caught.value.code is ErrorCode.USAGE
    assert caught.value.details == {"field": "json_schema"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a/b": {"uniqueItems": True}}}, "#/properties/a~1b: uniqueItems is not enforced: a grammar"),
        ({"items": {"format": "frob"}}, "#/items: format is not enforced: 'frob' is not known; date, "),
        ({"properties": {"a": {"enum": []}}}, "#/properties/a: enum is empty, no value fits"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "#/properties/a: no value fits"),
        (
            {"properties": {"o": {"type": "object", "properties": {"a/b": False}, "required": ["a/b"]}},
             "type": "object", "required": ["o"]},
            "#/properties/o/properties/a~1b: no value fits",
        ),
        (
            {"type": "object", "properties": {"a": {"allOf": [INTEGER, TEXT]}}, "required": ["a"]},
            "#/properties/a: no value fits",
        ),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}}}},
         "#: no value fits, because it would never end"),
        ({"patternProperties": {"(": {}}}, "#: patternProperties is not enforced: '(': regex parse error"),
        ({"patternProperties": {"^a": {}, "b$": {}}}, "#: patternProperties is not enforced: a name may match both"),
        ({"enum": ["\ud800"]}, "the schema has half of a surrogate pair"),
        ({"minLength": 1e30}, "#: minLength is more than any answer has, no value fits"),
        ({"properties": {f"p{i}": {} for i in range(4001)}}, "#: properties may have at most 4000 names that are not"),
        ({"$ref": "#/nowhere"}, "#: $ref '#/nowhere' leads nowhere: there is no 'nowhere'"),
        ({"anyOf": 3}, "#: anyOf must be a list of schemas"),
        ({"items": 3}, "#/items: must be a schema, which is an object or a boolean"),
        ({"multipleOf": 0}, "#: multipleOf must be more than 0"),
        ({"minimum": float("nan")}, "#: minimum must be a number"),
    ],
)  # fmt: skip
def test_an_error_names_the_keyword_and_its_place(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteError) as caught:
        rule(schema)
    assert caught.value.message.removeprefix("json_schema cannot be used: ").startswith(message)


def test_where_nobody_is_strict_the_rest_is_enforced_and_the_gap_named() -> None:
    schema = {"type": "array", "items": {"type": "string", "format": "frob"}, "uniqueItems": True, "minItems": 2}
    found = rule(schema, strict=False)
    assert [warning[:61] for warning in found.warnings] == [
        "json_schema: #: uniqueItems is not enforced: a grammar cannot",
        "json_schema: #/items: format is not enforced: 'frob' is not k",
    ]
    assert fits(found, '["a","a"]')
    assert not fits(found, '["a"]')
    assert not fits(found, "[1,2]")
    assert json_fits({"oneOf": [INTEGER, {"type": "number"}]}, 1, strict=False)
    both = {"type": "object", "patternProperties": {"^a": INTEGER, "b$": TEXT}}
    assert json_fits(both, {"a": 1}, strict=False)
    assert not json_fits(both, {"a": "x"}, strict=False)


def test_a_count_beyond_any_answer_is_no_limit() -> None:
    assert json_fits({"type": "string", "maxLength": 1e30}, "abc")


def test_white_space_is_what_people_write_and_has_an_end() -> None:
    schema = {"type": "object", "properties": {"a": INTEGER, "b": {"type": "array"}}}
    for text in ('{"a":1,"b":[]}', '{"a": 1, "b": [1, 2]}', json.dumps({"a": 1, "b": [1, {"c": 2}]}, indent=4)):
        assert json_fits(schema, text.encode())
    for text in ('{  "a":1}', '{"a":\n\n1}', '{"a":1 \n}', ' {"a":1}', '{"a":1}\n'):
        assert not json_fits(schema, text.encode())


def test_properties_come_in_the_order_in_which_they_are_declared() -> None:
    schema = {"type": "object", "properties": {"reason": TEXT, "answer": TEXT, "score": INTEGER}, "required": ["score"]}
    assert json_fits(schema, {"reason": "r", "answer": "a", "score": 1})
    assert not json_fits(schema, {"score": 1, "reason": "r"})


def test_an_object_with_declared_properties_gets_no_others_unless_they_are_allowed() -> None:
    """JSON Schema allows any; a small model would add them without end."""
    schema: dict[str, Any] = {"type": "object", "properties": {"a": INTEGER}}
    assert not json_fits(schema, {"a": 1, "b": 2})
    assert json_fits({**schema, "additionalProperties": True}, {"a": 1, "b": 2})
    assert json_fits({"type": "object"}, {"b": 2})
    both = {"allOf": [schema, {"$ref": "#/$defs/b"}], "$defs": {"b": {"properties": {"b": INTEGER}}}}
    assert json_fits(both, {"a": 1, "b": 2})
    assert not json_fits(both, {"a": 1, "c": 2})


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"value {number}" for number in range(10_000)]},
        {"type": "object", "properties": {f"property {number}": {"type": "string", "description": "d" * 150}
                                          for number in range(2_500)}},
        {"type": "array", "items": TEXT, "minItems": 5_000, "maxItems": 10_000},
        {"type": "string", "pattern": "(a|b)*a(a|b){60}"},
        {"allOf": [{"$ref": "#/a"}] * 200, "a": {"properties": {f"p{number}": {} for number in range(99)}}},
    ],
    ids=["enum", "properties", "items", "pattern", "references"],
)  # fmt: skip
def test_large_schemas_are_no_trouble(schema: dict[str, Any]) -> None:
    answer = chance_answer(rule(schema), random.Random(2))
    assert answer is None or validator(schema).is_valid(json.loads(answer))


def test_a_schema_may_be_nested_deeply() -> None:
    schema: dict[str, Any] = INTEGER
    for _ in range(200):
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    assert json_fits(schema, b"[" * 200 + b"7" + b"]" * 200)
    assert not json_fits(schema, b"[" * 199 + b"7" + b"]" * 199)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"allOf": [{"anyOf": [{"required": [f"a{n}"]}, {"required": [f"b{n}"]}]} for n in range(16)]}, "too large"),
        ({"enum": ["x" * 2_000_000]}, "may have at most 1048576 characters"),
    ],
)
def test_what_would_grow_without_bound_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(RemoteError, match=message):
        rule(schema)


WORDS = sorted({*ENFORCED, *PARTLY, "then", "else", "title", "default"})
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from([2.0, 0.5, "", "a", "#", "#/x", "^a"]),
                   st.sampled_from(ALL_TYPES))  # fmt: skip
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
        st.dictionaries(st.sampled_from(["a", "x", "$ref"]), inner, max_size=2),
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@example(schema={"then": {"$ref": True}}, strict=False)
@given(st.dictionaries(st.sampled_from(WORDS), ANYTHING, max_size=4), st.booleans())
def test_any_schema_is_enforced_or_refused(schema: dict[str, Any], strict: bool) -> None:
    try:
        found = rule(schema, strict=strict)
    except RemoteError as error:
        assert error.code is ErrorCode.USAGE
    else:
        chance_answer(found, random.Random(1), 60)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 2, "maxLength": 5},
        {"type": "string", "pattern": "^[a-c]{2}(x|y)*$"},
        {"type": "integer", "minimum": -7, "maximum": 1234},
        {"type": "integer", "multipleOf": 7},
        {"enum": [1, "a", None, [True], {"k": "v"}]},
        {"type": "array", "items": {"type": ["boolean", "null"]}, "minItems": 1, "maxItems": 4},
        {"anyOf": [{"type": "integer", "exclusiveMinimum": 3}, {"type": "string", "maxLength": 1}]},
    ],
    ids=json.dumps,
)
@settings(max_examples=40)
@given(st.data())
def test_no_good_value_is_refused(schema: dict[str, Any], data: st.DataObject) -> None:
    """But for those with characters that JSON has to spell with a number, or llguidance: DEL."""
    value = data.draw(from_schema(schema))
    text = json.dumps(value, ensure_ascii=False)
    assume("\\u" not in text and "\x7f" not in text)
    assert json_fits(schema, value)


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        ('^[^"]$', ["\\", "\n", "x"], ['"', ""]),
        (r"^[^\\]$", ['"', "\t"], ["\\"]),
        ("^[\\x00-!]$", ["\n", "!"], ['"', "\\"]),
        ("^a(\\v|\\x01|\\u0002|\x03|x)b$", ["axb"], ["ab", 'a"b']),
        ("^[^]$", ["a", '"'], ["", "ab"]),
        ("^([]x]|y)$", ["y"], ["x", "]", "x]"]),
    ],
)
def test_a_pattern_knows_quotes_from_control_characters(pattern: str, inside: list[str], outside: list[str]) -> None:
    assert [text for text in inside if not json_fits({"pattern": pattern}, json.dumps(text).encode())] == []
    assert [text for text in outside if json_fits({"pattern": pattern}, json.dumps(text).encode())] == []


@pytest.mark.parametrize("schema", [{"enum": ["a\x0bb", 1]}, {"const": {"k": ["\x7f"]}}])
def test_a_listed_string_with_a_control_character_is_not_left_incomplete(schema: dict[str, Any]) -> None:
    with pytest.raises(RemoteError, match="control characters"):
        json_rule(schema, strict=True, where="json_schema")


def test_a_thousand_variants_with_a_kind_each_take_no_time() -> None:
    kinds = [{"type": "object", "properties": {"k": {"const": kind}}, "required": ["k"]} for kind in range(1000)]
    begun = time.thread_time()
    assert json_fits({"oneOf": kinds}, {"k": 999})
    assert time.thread_time() - begun < 5
    with pytest.raises(RemoteError, match="both its alternatives 5 and 6"):
        json_rule({"oneOf": [*kinds[:6], kinds[5]]}, strict=True, where="json_schema")
