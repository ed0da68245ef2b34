"""Which part of a schema llguidance does not take: it says what, but not where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rbee_remote.constraints import library
from rbee_remote.constraints.library import GrammarError
from rbee_remote.constraints.references import escaped
from rbee_remote.constraints.schema import Normaliser

#: Parts that are tried, each by itself.
MAX_TRIES = 200


def find(written: dict[str, Any], normaliser: Normaliser, error: GrammarError) -> tuple[str, GrammarError]:
    """The innermost place whose schema is refused by itself, and why it is. error: why the whole was refused."""
    found, reason, tries = written, error, 0
    deeper: Any = written
    seen: set[int] = set()
    place = ""
    while deeper is not None:
        found, deeper = deeper, None
        place = normaliser.places.get(id(found), place)
        for part in _needed(found, normaliser.defs):
            tries += 1
            if tries > MAX_TRIES or id(part) in seen:
                continue
            seen.add(id(part))
            if refused := _refused(part, normaliser.defs):
                deeper, reason = part, refused
                break
    return place + _forbidden(found), reason


def _forbidden(written: dict[str, Any]) -> str:
    """From there to a property that has to be there and can have no value; "" where there is none."""
    if written.get("type") != "object":
        return ""
    properties = written.get("properties", {})
    names = (name for name in written.get("required", ()) if properties.get(name) is False)
    return next((f"/properties/{escaped(name)}" for name in names), "")


def _refused(part: dict[str, Any], defs: dict[str, Any]) -> GrammarError | None:
    try:
        library.check(f"start: %json {json.dumps({**part, '$defs': defs})}")
    except GrammarError as error:
        return error
    return None


def _needed(schema: dict[str, Any], defs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts without which it has no value, and those whose values only llguidance knows to be none."""
    if "$ref" in schema:
        parts = [defs.get(schema["$ref"].rpartition("/")[2], True)]
    else:
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        parts = [properties[name] for name in required if name in properties]
        parts += [part for name, part in properties.items() if name not in required and part is not False]
        parts += [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties", True)]
        parts += [*schema.get("prefixItems", ()), schema.get("items", True)]
        parts += [*schema.get("allOf", ()), *schema.get("anyOf", ())]
    for part in parts:
        if isinstance(part, dict):
            yield part
