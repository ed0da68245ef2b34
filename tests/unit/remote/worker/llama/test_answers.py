"""Answers of the real model to many schemas, at a temperature at which it is mostly wrong: each that ends is one of the
schema's values."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rbee_remote.constraints.rules import json_rule
from rbee_remote.protocol import Sampling, WorkerConfig, WorkerOptions
from rbee_remote.worker.engine.interface import BatchToken, Engine

pytestmark = pytest.mark.model

SLOTS = 8
MAX_TOKENS = 40
OF_EACH_KIND = 6
#: Short: at this temperature a question changes little, and each of its tokens is computed 120 times.
PROMPT = "JSON:\n"
WORDS = ("name", "size", "a b", "größe", 'quo"te', "back\\slash", "", "x1", "$ref", "items")

Schema = dict[str, Any]


@pytest.fixture(scope="module")
def engine(model_path: Path) -> Iterator[Engine]:
    from rbee_remote.worker.llama.engine import load_engine

    options = WorkerOptions(threads=1)  # several threads that wait for each other are slow on a busy machine
    config = WorkerConfig("0" * 16, "m", str(model_path), "", options, ctx=256, keep_alive_s=1.0, slots=SLOTS)
    with closing(load_engine(config, lambda _: True)) as loaded:
        yield loaded


def answers(engine: Engine, schemas: Sequence[Schema], sampling: Sampling) -> list[str | None]:
    """To each schema, `SLOTS` at a time; None for what is not at its end after `MAX_TOKENS`."""
    prompt = engine.tokenize(PROMPT, add_special=True, parse_special=True)
    waiting, found = list(enumerate(schemas)), [None] * len(schemas)  # type: list[tuple[int, Schema]], list[str | None]
    running: dict[int, tuple[int, bytearray, list[BatchToken], int]] = {}
    while waiting or running:
        for seq in range(SLOTS):
            if seq not in running and waiting:
                index, schema = waiting.pop()
                constraint = engine.constraint(json_rule(schema, strict=True, where="json_schema").grammar)
                engine.truncate(seq, 0)
                engine.start(seq, sampling, index, prompt, constraint)
                batch = [BatchToken(token, pos, seq, pos == len(prompt) - 1) for pos, token in enumerate(prompt)]
                running[seq] = index, bytearray(), batch, MAX_TOKENS
        step = [token for _, _, batch, _ in running.values() for token in batch]
        assert engine.decode(step)
        for row, last in [(row, token) for row, token in enumerate(step) if token.output]:
            index, text, _, left = running[last.seq]
            token = engine.sample(last.seq, row).token
            text += engine.piece(token)
            running[last.seq] = index, text, [BatchToken(token, last.pos + 1, last.seq, True)], left - 1
            if engine.is_end(token) or left == 1:
                found[index] = text.decode() if engine.is_end(token) else None
                engine.finish(last.seq)
                del running[last.seq]
    return found


def validator(schema: Schema) -> Any:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    return jsonschema.Draft202012Validator(schema, format_checker=checker)


def text(chance: random.Random) -> Schema:
    least = chance.randint(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 6)}


def listed(chance: random.Random) -> Schema:
    values = [None, True, 7, -2.5, "yes", "nö", 'a"b', [1, "x"], {"k": 1}]
    return {"enum": chance.sample(values, chance.randint(1, 5))}


def integer(chance: random.Random) -> Schema:
    low = chance.randint(-500, 500)
    return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 900)}


def number(chance: random.Random) -> Schema:
    low = chance.randint(-50, 50) / 2
    return {"type": "number", "exclusiveMinimum": low, "maximum": low + chance.randint(1, 9), "multipleOf": 0.5}


def pattern(chance: random.Random) -> Schema:
    patterns = ("^[A-Z]{2}-\\d{3}$", "^yes|no$", "^(a|b)+c?$", "ab", '^"\\w*"$', "^[^x]{0,5}$", "^\\s?\\d+\\.\\d$")
    return {"type": "string", "pattern": chance.choice(patterns), "maxLength": 12}


def formatted(chance: random.Random) -> Schema:
    names = ("date", "date-time", "time", "ipv4", "uuid", "email", "duration")
    return {"type": "string", "format": chance.choice(names)}


def simple(chance: random.Random) -> Schema:
    return chance.choice((text, listed, integer, number, pattern))(chance)


def array(chance: random.Random) -> Schema:
    least = chance.randint(0, 2)
    return {"type": "array", "items": simple(chance), "minItems": least, "maxItems": least + chance.randint(0, 2)}


def pair(chance: random.Random) -> Schema:
    schema = {"type": "array", "prefixItems": [simple(chance), simple(chance)], "minItems": chance.randint(0, 2)}
    return schema | chance.choice(({}, {"items": False}, {"items": integer(chance), "maxItems": 3}))


def record(chance: random.Random) -> Schema:
    names = chance.sample(WORDS, chance.randint(1, 4))
    required = chance.sample(names, chance.randint(0, len(names)))
    return {"type": "object", "properties": {name: simple(chance) for name in names}, "required": required}


def closed(chance: random.Random) -> Schema:
    return record(chance) | {"additionalProperties": False, "minProperties": 1}


def map_of(chance: random.Random) -> Schema:
    keys = chance.choice(({}, {"propertyNames": {"enum": ["a", "b"]}}, {"propertyNames": {"pattern": "^[a-z]{1,3}$"}}))
    return {"type": "object", "additionalProperties": simple(chance), "maxProperties": 2, **keys}


def by_pattern(chance: random.Random) -> Schema:
    patterns = {"^x-[a-z]{1,3}$": simple(chance), "^[0-9]{1,2}$": integer(chance)}
    return {"type": "object", "patternProperties": patterns, "additionalProperties": False, "maxProperties": 2}


def union(chance: random.Random) -> Schema:
    return {"anyOf": [simple(chance), record(chance), {"type": "null"}]}


def variants(chance: random.Random) -> Schema:
    kinds = {kind: record(chance) for kind in ("cat", "dog")}
    for kind, schema in kinds.items():
        schema["properties"] = {"kind": {"const": kind}} | schema["properties"]
        schema["required"] = ["kind", *schema["required"]]
    return {"oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in kinds], "$defs": kinds}


def merged(chance: random.Random) -> Schema:
    base = {"type": "object", "properties": {"id": integer(chance)}, "required": ["id"]}
    return {"allOf": [{"$ref": "#/$defs/base"}, record(chance)], "$defs": {"base": base}}


def tree(chance: random.Random) -> Schema:
    node = {"type": "object", "properties": {"v": simple(chance), "kids": {"type": "array", "items": {"$ref": "#"},
            "maxItems": 1}}, "required": ["v"]}  # fmt: skip
    return {**node, "title": "Tree"}


def depending(chance: random.Random) -> Schema:
    properties = {name: simple(chance) for name in ("a", "b", "c")}
    return {"type": "object", "properties": properties, "dependentRequired": {"a": ["c"]}}


def conditional(chance: random.Random) -> Schema:
    properties = {"k": {"enum": ["x", "y"]}, "n": integer(chance), "s": text(chance)}
    branches = {"if": {"properties": {"k": {"const": "x"}}}, "then": {"required": ["n"]}, "else": {"required": ["s"]}}
    return {"type": "object", "properties": properties, "required": ["k"], **branches}


def nullable(chance: random.Random) -> Schema:
    return {"type": ["string", "null", "integer"], "maxLength": chance.randint(1, 8), "minimum": 3, "maximum": 99}


def without(chance: random.Random) -> Schema:
    return {"not": {"type": chance.choice(("string", "number", "object"))}, "maxLength": 4, "maxItems": 0, "maximum": 9,
            "minimum": 0, "multipleOf": 1, "maxProperties": 0}  # fmt: skip


KINDS: Sequence[Callable[[random.Random], Schema]] = (
    text, listed, integer, number, pattern, formatted, array, pair, record, closed, map_of, by_pattern, union, variants,
    merged, tree, depending, conditional, nullable, without,
)  # fmt: skip


def test_every_finished_answer_to_120_schemas_fits_its_schema(engine: Engine) -> None:
    chance = random.Random(11)
    schemas = [kind(chance) for kind in KINDS for _ in range(OF_EACH_KIND)]
    assert len(schemas) == 120
    found = answers(engine, schemas, Sampling(temperature=1.5, top_k=200, min_p=0.0))
    finished: Counter[str] = Counter()
    for index, (schema, answer) in enumerate(zip(schemas, found, strict=True)):
        if answer is not None:
            assert list(validator(schema).iter_errors(json.loads(answer))) == [], (schema, answer)
            finished[KINDS[index // OF_EACH_KIND].__name__] += 1
    assert len(finished) == len(KINDS), finished
    assert finished.total() > 60, finished


WRONG_ONCE: list[Schema] = [
    {"type": ["string", "null"], "enum": ["celsius", None]},
    {"type": "string", "pattern": "^yes|no$", "maxLength": 20},
    {"type": "string", "pattern": '^"a"$'},
    {"type": "string", "pattern": "^[^x]+$", "maxLength": 20},
    {"type": "object", "properties": {"c": {"allOf": [{"$ref": "#/$defs/C"}]}}, "required": ["c"],
     "$defs": {"C": {"enum": ["red"]}}},
    {"type": "object", "properties": {"a": {"type": "integer", "maximum": 99}}, "required": ["a"],
     "anyOf": [{"required": ["a"]}]},
    {"type": "string", "minLength": 3, "maxLength": 9, "pattern": "^[a-z]*$"},
    {"allOf": [{"type": "string", "maxLength": 9}]},
    {"allOf": [{"const": 5}]},
    {"$ref": "#/$defs/S", "maxLength": 3, "$defs": {"S": {"type": "string"}}},
    {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a", "b"],
     "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    {"type": "object", "properties": {"": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": [""]},
]  # fmt: skip


def test_what_was_answered_wrongly_at_temperature_0_is_right(engine: Engine) -> None:
    for schema, answer in zip(WRONG_ONCE, answers(engine, WRONG_ONCE, Sampling(temperature=0)), strict=True):
        assert answer is not None, schema
        assert validator(schema).is_valid(json.loads(answer)), (schema, answer)
