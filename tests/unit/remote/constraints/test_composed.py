"""Schemas put together by chance out of most keywords: what is accepted has only answers that fit."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest

from rbee_remote.constraints.rules import json_rule
from rbee_remote.protocol import RemoteError
from tests.answers import chance_answer

NAMES = ("a", "b", "c")
SCHEMAS = 100
TYPES = ("string", "integer", "null", "boolean", "number", "array", "object")


class Composer:
    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.keywords: dict[str, Callable[[int], Any]] = {
            "properties": lambda depth: {name: self.schema(depth) for name in self.names()},
            "required": lambda _: self.names(),
            "additionalProperties": self.schema,
            "patternProperties": lambda depth: {chance.choice(["^a", "b$"]): self.schema(depth)},
            "propertyNames": lambda _: chance.choice([{"enum": ["a", "b"]}, {"pattern": "^a"}, True]),
            "dependentRequired": lambda _: {chance.choice(NAMES): self.names()},
            "dependentSchemas": lambda depth: {chance.choice(NAMES): self.schema(depth)},
            "unevaluatedProperties": lambda _: chance.choice([False, self.leaf()]),
            "minProperties": lambda _: chance.randint(0, 2),
            "maxProperties": lambda _: chance.randint(0, 3),
            "items": self.schema,
            "prefixItems": lambda depth: [self.schema(depth) for _ in range(chance.randint(1, 2))],
            "unevaluatedItems": lambda _: False,
            "minItems": lambda _: chance.randint(0, 2),
            "allOf": lambda depth: [self.schema(depth) for _ in range(chance.randint(1, 2))],
            "anyOf": lambda depth: [self.schema(depth) for _ in range(chance.randint(1, 3))],
            "oneOf": lambda depth: [self.schema(depth) for _ in range(chance.randint(1, 3))],
            "not": lambda _: self.leaf(),
            "$ref": lambda _: f"#/$defs/{chance.choice('xy')}",
            "type": lambda _: chance.choice(["object", "array", ["object", "integer"], "string"]),
            "enum": lambda _: chance.sample([1, "a", None, {"a": 1}, [1]], 2),
        }

    def names(self) -> list[str]:
        return self.chance.sample(NAMES, self.chance.randint(1, 2))

    def leaf(self) -> Any:
        chance = self.chance
        return chance.choice(
            [
                *(True, False, {"required": self.names()}, {"$ref": f"#/$defs/{chance.choice('xy')}"}),
                *({"type": chance.choice(TYPES)}, {"type": ["string", "null"], "minLength": 1}),
                *({"const": chance.choice([1, "a", None, [1], {"a": 1}, 2.5])}, {"multipleOf": chance.choice([2, 3])}),
                *({"minimum": chance.randint(-3, 3)}, {"type": "integer", "maximum": chance.randint(0, 9)}),
                *({"maxLength": chance.randint(0, 3)}, {"pattern": chance.choice(["^a", "b$", "^[ab]+$"])}),
            ]
        )

    def schema(self, depth: int) -> Any:
        if depth == 0 or self.chance.random() < 0.2:
            return self.leaf()
        words = self.chance.sample(sorted(self.keywords), self.chance.randint(1, 4))
        schema = {word: self.keywords[word](depth - 1) for word in words}
        if self.chance.random() < 0.2:
            schema |= {"if": self.leaf(), "then": self.leaf(), "else": self.leaf()}
        return schema

    def whole(self) -> dict[str, Any]:
        schema = self.schema(3)
        definitions = {"x": self.schema(1), "y": self.schema(1)}
        return {**(schema if isinstance(schema, dict) else {}), "$defs": definitions}


@pytest.mark.parametrize("seed", range(4))
def test_what_is_accepted_has_only_answers_that_fit(seed: int) -> None:
    composer = Composer(random.Random(seed))
    accepted = 0
    while accepted < SCHEMAS:
        schema = composer.whole()
        try:
            rule = json_rule(schema, strict=True, where="json_schema")
        except RemoteError:
            continue
        accepted += 1
        validator = jsonschema.Draft202012Validator(schema)
        for _ in range(6):
            answer = chance_answer(rule, composer.chance, 150)
            assert answer is None or validator.is_valid(json.loads(answer)), (schema, answer)
