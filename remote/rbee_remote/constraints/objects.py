"""A schema's keywords about objects, and those that choose by a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rbee_remote.constraints import library
from rbee_remote.constraints.disjoint import ALL_TYPES
from rbee_remote.constraints.patterns import portable
from rbee_remote.constraints.references import LostReferenceError, escaped

if TYPE_CHECKING:
    from rbee_remote.constraints.part import Part

#: Keywords that apply schemas to the object itself, and those that assert something of it.
APPLIED = ("dependentRequired", "dependentSchemas", "dependencies", "not", "if")
WORDS = (
    "properties", "patternProperties", "additionalProperties", "required", "propertyNames", "unevaluatedProperties",
)  # fmt: skip
#: Properties that may be left out. llguidance takes time with their square: 1 s for 4,000.
MAX_OPTIONAL = 4000
#: Each doubles the ways through an object.
MAX_CONDITIONS = 6


def apply(part: Part, word: str) -> list[Any]:
    value = part.schema[word]
    if word == "not":
        return [_negated(part, value)]
    if word == "if":
        return _if(part, value)
    if len(value) > MAX_CONDITIONS:
        part.unsupported(word, f"for more than {MAX_CONDITIONS} properties")
        return []
    return [_depending(part, word, name, then) for name, then in value.items()]


def _depending(part: Part, word: str, name: str, then: Any) -> Any:
    """An object that has no `name`, or has it and what depends on it."""
    if isinstance(then, list):
        having: Any = {"required": list(dict.fromkeys([name, *then]))}
    else:
        having = {"allOf": [{"required": [name]}, part.sub(then, word, name, closed=False)]}
    return {"anyOf": [{"properties": {name: False}}, having]}


def _negated(part: Part, value: Any) -> Any:
    found = negation(value)
    if found is None:
        part.unsupported("not", "only of a type, of required properties, and of booleans and anyOf of those")
        return True
    return found


def negation(value: Any) -> Any:
    """A schema for all that does not fit `value`; None where it is not known how to write one."""
    if isinstance(value, bool) or value == {}:
        return value is False
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((word, said),) = value.items()
    if word == "not":
        return said
    if word == "type":
        types = {said} if isinstance(said, str) else set(said)
        left = [name for name in ALL_TYPES if name not in types]
        return None if "integer" in types and "number" not in types else {"type": left} if left else False
    if word == "required" and said:
        return {"type": "object", "anyOf": [{"properties": {name: False}} for name in said]}
    if word == "anyOf":
        parts = [negation(each) for each in said]
        return None if None in parts else {"allOf": parts}
    return None


def _if(part: Part, condition: Any) -> list[Any]:
    """With its negation, which only some conditions have."""
    branches = [(word, part.schema[word]) for word in ("then", "else") if part.schema.get(word, True) not in (True, {})]
    if not branches:
        return []
    if isinstance(condition, bool):
        return [part.sub(then, word, closed=False) for word, then in branches if (word == "then") is condition]
    otherwise = negation(condition)
    if otherwise is None:
        otherwise = _other_values(part, condition)
    if otherwise is None:
        part.unsupported("if", "only where it looks at a type, at required properties, or at one property with an enum")
        return []
    then, other = (part.sub(part.schema.get(word, True), word, closed=False) for word in ("then", "else"))
    met = part.sub(condition, "if", closed=False)
    return [{"anyOf": [{"allOf": [met, then]}, {"allOf": [otherwise, other]}]}]


def _other_values(part: Part, condition: Any) -> Any:
    """The negation of "this property is one of these values", where the schema lists all values that it may have."""
    properties = condition.get("properties") if isinstance(condition, dict) else None
    if not isinstance(properties, dict) or len(properties) != 1 or condition.keys() - {"properties", "required"}:
        return None
    ((name, wanted),) = properties.items()
    declared = part.schema.get("properties", {}).get(name)
    required = name in part.schema.get("required", ())
    values = [each.get("enum", [each["const"]] if "const" in each else None) if isinstance(each, dict) and
              not each.keys() - {"enum", "const", "type", "title", "description", "default"} else None
              for each in (wanted, declared)]  # fmt: skip
    if values[0] is None or values[1] is None or condition.get("required", [name]) != [name]:
        return None
    left = [value for value in values[1] if value not in values[0]]
    absent = [{"properties": {name: False}}] if "required" in condition and not required else []
    return {"anyOf": [{"type": "object", "properties": {name: {"enum": left}}, "required": [name]}, *absent]}


def check(part: Part, word: str) -> None:
    value = part.schema[word]
    match word:
        case "required":
            part.own[word] = list(dict.fromkeys(value))
        case "properties" | "patternProperties":
            if word == "properties":
                part.own[word] = {name: part.sub(each, word, name, closed=True) for name, each in value.items()}
            else:
                _pattern_properties(part, value)
        case "additionalProperties":
            part.own[word] = part.sub(value, word, closed=True)
        case "propertyNames":
            _names(part, value)
        case "unevaluatedProperties":
            _unevaluated(part, value)


def _pattern_properties(part: Part, value: dict[str, Any]) -> None:
    found: dict[str, Any] = {}
    for pattern, each in value.items():
        if reason := library.pattern_trouble(portable(pattern)):
            part.unsupported("patternProperties", f"{pattern[:40]!r}: {reason}")
        elif library.may_overlap((*found, portable(pattern))):
            part.unsupported("patternProperties", f"a name may match both {pattern[:40]!r} and a pattern before it")
        else:
            found[portable(pattern)] = part.sub(each, "patternProperties", pattern, closed=True)
    if found:
        part.own["patternProperties"] = found


def _names(part: Part, value: Any) -> None:
    """Names from a list, or by a pattern where no property is declared."""
    other = part.schema.get("additionalProperties", True)
    if value is True or value == {}:
        return
    if value is False:
        part.own["maxProperties"] = 0
        return
    said = {word: each for word, each in value.items() if word != "type"} if isinstance(value, dict) else {}
    listed = said.get("enum", [said["const"]] if "const" in said else None)
    if isinstance(listed, list) and len(said) == 1 and "patternProperties" not in part.schema:
        allowed = [name for name in listed if isinstance(name, str)]
        known = part.schema.get("properties", {})
        schemas = {name: part.sub(known[name], "properties", name, closed=True) for name in known if name in allowed}
        for name in allowed:
            schemas.setdefault(name, part.sub(other, "additionalProperties", closed=True))
        part.listed = schemas
    elif list(said) == ["pattern"] and not part.schema.keys() & {"properties", "patternProperties", "required"}:
        if reason := library.pattern_trouble(portable(said["pattern"])):
            part.unsupported("propertyNames", reason)
        else:
            schema = part.sub(other, "additionalProperties", closed=True)
            part.also({"patternProperties": {portable(said["pattern"]): schema}, "additionalProperties": False})
    else:
        part.unsupported("propertyNames", "only as a list of names, or as a pattern where no property is declared")


def _unevaluated(part: Part, value: Any) -> None:
    if value in (True, {}) or "additionalProperties" in part.schema:
        return
    names = evaluated(part, part.schema, part.place, exact=True)
    if names is None:
        part.unsupported("unevaluatedProperties", "not beside keywords that evaluate properties by a condition")
        return
    others = part.sub(value, "unevaluatedProperties", closed=True)
    schema = {"properties": dict.fromkeys(names, True), "additionalProperties": others}
    patterns = part.schema.get("patternProperties", {})
    part.also({**schema, "patternProperties": {portable(each): True for each in patterns}} if patterns else schema)


def close(part: Part) -> None:
    """Allow no property that nothing names. JSON Schema allows any, which a small model takes for an invitation."""
    names = evaluated(part, part.schema, part.place, exact=False)
    if not names or part.own.get("minProperties", 0) > len(names):
        return
    if "properties" in part.own and not part.has_applied:
        missing = [name for name in names if name not in part.own["properties"]]
        part.own["properties"] |= dict.fromkeys(missing, True)
        part.own["additionalProperties"] = False
    else:
        part.also({"properties": dict.fromkeys(names, True), "additionalProperties": False})


def evaluated(part: Part, schema: Any, place: str, *, exact: bool, depth: int = 0) -> list[str] | None:
    """Names that the schema at a place speaks of, in their order. None where it speaks of all, or of some by a pattern;
    and with `exact` where that depends on the value."""
    if not isinstance(schema, dict):
        return []
    opening = ("additionalProperties", "propertyNames", "unevaluatedProperties")
    if depth > MAX_CONDITIONS or any(
        schema.get(word, False) is not False for word in opening if not (exact and depth == 0)
    ):
        return None
    conditional = ("anyOf", "oneOf", "if", "dependentSchemas", "dependencies", "not")
    if (exact and any(word in schema for word in conditional)) or (
        "patternProperties" in schema and not (exact and not depth)
    ):
        return None
    found: list[str] = []
    for word, value in schema.items():
        for at, each in _in_place(part, word, value, place):
            names = evaluated(part, each, at, exact=exact, depth=depth + 1)
            if names is None:
                return None
            found += names
        if word == "properties" or (word == "required" and not exact):
            found += value
        elif word in ("dependentRequired", "dependencies") and not exact:
            found += [name for each in value.values() if isinstance(each, list) for name in each]
    return list(dict.fromkeys(found))


def _in_place(part: Part, word: str, value: Any, place: str) -> list[tuple[str, Any]]:
    """What a keyword applies to the same value, and where that stands."""
    if word in ("$ref", "$dynamicRef", "$recursiveRef"):
        try:
            return [part.owner.target(word, value, place)]
        except LostReferenceError:
            return []
    if word in ("allOf", "anyOf", "oneOf"):
        return [(f"{place}/{word}/{index}", each) for index, each in enumerate(value)]
    if word in ("then", "else", "if"):
        return [(f"{place}/{word}", value)]
    if word in ("dependentSchemas", "dependencies"):
        return [(f"{place}/{word}/{escaped(name)}", each) for name, each in value.items() if isinstance(each, dict)]
    return []


def check_counts(part: Part) -> None:
    """llguidance does not see that a name comes twice, which counts once, and counts only properties that may not be
    left out, or up to 1."""
    own = part.own
    required, known = own.get("required", []), own.get("properties", {})
    closed = own.get("additionalProperties", True) is False and "patternProperties" not in own
    if own.get("minProperties", 0) <= len(required):
        own.pop("minProperties", None)
    if closed and own.get("maxProperties", 0) >= len({*known, *required}):
        own.pop("maxProperties", None)
    least, most = own.get("minProperties", 0), own.get("maxProperties")
    optional = [name for name in known.keys() - set(required) if known[name] is not False]
    if len(optional) > MAX_OPTIONAL:
        what = f"may have at most {MAX_OPTIONAL} names that are not required, this has {len(optional)}"
        raise part.wrong("properties", what)
    if least > 1 and not closed:
        part.unsupported("minProperties", "more than 1, unless as many are required, because a name may come twice")
        del own["minProperties"]
    elif optional and (least or most is not None) and not (closed and least <= 1 and most in (None, 1)):
        word = "minProperties" if least else "maxProperties"
        part.unsupported(word, "more than 1, where some of the declared properties may be left out")
        own.pop("minProperties", None)
        own.pop("maxProperties", None)
