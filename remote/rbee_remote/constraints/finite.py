"""Whether a schema has a value that ends. One that requires itself has none, and llguidance would never see it."""

from __future__ import annotations

from typing import Any


def endless(defs: dict[str, Any], root: Any) -> list[str]:
    """Names of those of `defs` that no finite value fits, as far as references decide that; "" for the root. Schemas
    are those that `schema` writes."""
    known: dict[str, bool] = {}
    grown = True
    while grown:
        grown = False
        for name, part in (*defs.items(), ("", root)):
            if not known.get(name) and _ends(part, known):
                known[name] = grown = True
    return [name for name in ("", *defs) if not known.get(name)]


def _ends(schema: Any, known: dict[str, bool]) -> bool:
    if isinstance(schema, bool) or "enum" in schema:
        return True
    reference = schema.get("$ref")
    if reference and not known.get(reference.rpartition("/")[2]):
        return False
    if not all(_ends(part, known) for part in schema.get("allOf", ())):
        return False
    if "anyOf" in schema and not any(_ends(part, known) for part in schema["anyOf"]):
        return False
    types = schema.get("type", "any")
    types = {types} if isinstance(types, str) else set(types)
    if types - {"object", "array"}:
        return True
    return ("object" in types and _object_ends(schema, known)) or ("array" in types and _array_ends(schema, known))


def _object_ends(schema: dict[str, Any], known: dict[str, bool]) -> bool:
    properties, other = schema.get("properties", {}), schema.get("additionalProperties", True)
    return all(_ends(properties.get(name, other), known) for name in schema.get("required", ()))


def _array_ends(schema: dict[str, Any], known: dict[str, bool]) -> bool:
    least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
    rest = [schema.get("items", True)] if least > len(first) else []
    return all(_ends(part, known) for part in [*first[:least], *rest])
