from __future__ import annotations

import math
from typing import Any

import pytest

from rbee_remote.worker.constraints import json_schema
from rbee_remote.worker.constraints.json_schema import SchemaError


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "string", "minLength": 3, "maxLength": 4000},
        {"properties": {"minItems": {"type": "integer"}, "enum": {"type": "string"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "null"}}},
        {"type": "string", "pattern": "^[a-z]{2,30}$"},
        nested(60),
    ],
)
def test_schemas_that_are_fine(schema: dict[str, Any]) -> None:
    json_schema.check(schema)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"$ref": "https://example.com/schema.json"}, "/: only a $ref inside the schema"),
        ({"items": {"$ref": "#"}}, "/items: only a $ref inside the schema"),
        ({"$ref": 7}, "/: only a $ref inside the schema"),
        ({"items": [{"minItems": 10**9}]}, "/items/0: minItems must be an integer from 0 to 10000"),
        ({"maxLength": -1}, "/: maxLength must be an integer"),
        ({"maxLength": 2.5}, "/: maxLength must be an integer"),
        ({"minItems": 3, "maxItems": 2}, "/: minItems is larger than maxItems"),
        ({"pattern": "^a{1000000000}$"}, "/: a pattern may repeat at most 10000 times"),
        ({"pattern": "^a{2," + "9" * 5000 + "}$"}, "/: a pattern may repeat at most 10000 times"),
        ({"enum": []}, "/: enum is empty"),
        (
            {"properties": {f"p{index}": {} for index in range(201)}},
            "/: an object may have at most 200 properties that are not",
        ),
        ({"properties": {"x" * 500: {"minItems": 9999}}}, "the schema repeats too much"),
        ({"description": "x" * 70_000}, "a schema may have at most 65536 characters"),
        ({"const": math.nan}, "the schema is not JSON"),
        (nested(65), "a schema may be at most 64 levels deep"),
    ],
)
def test_what_a_schema_may_not_ask_for(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError) as caught:
        json_schema.check(schema)
    assert str(caught.value).startswith(message)
