"""The form that an answer is to have, in the words of several servers, as fields of `Sampling`.

response_format                                           OpenAI's; a schema beside json_object is llama-server's
json_schema, grammar, regex, lark                         the protocol's own, and llama-server's
guided_json, guided_regex, guided_choice, guided_grammar  vLLM's
structured_outputs: {json, regex, choice, grammar}        vLLM's too
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rbee_remote.worker.http.openai.errors import wrong

_OWN = ("json_schema", "grammar", "regex", "lark")
_WORDS = ("json", "regex", "choice", "grammar")
NAMES = frozenset((*_OWN, *(f"guided_{word}" for word in _WORDS), "response_format", "structured_outputs"))


def answer_format(data: Mapping[str, Any]) -> dict[str, Any]:
    """Raises RemoteError USAGE naming the field, where two are given too."""
    found = {name: {name: data[name]} for name in _OWN if data.get(name) not in (None, "")}
    if data.get("response_format") is not None:
        found |= {"response_format": shape} if (shape := _of_response(data["response_format"])) else {}
    for word in _WORDS:
        if data.get(f"guided_{word}") is not None:
            found[f"guided_{word}"] = _guided(f"guided_{word}", word, data[f"guided_{word}"])
    outputs = data.get("structured_outputs") or {}
    if not isinstance(outputs, dict):
        raise wrong("structured_outputs", "must be an object")
    for word in _WORDS:
        if outputs.get(word) is not None:
            where = f"structured_outputs.{word}"
            found[where] = _guided(where, word, outputs[word])
    if len(found) > 1:
        first, second = list(found)[:2]
        raise wrong(second, f"cannot be combined with {first}")
    return next(iter(found.values()), {})


def _of_response(form: Any) -> dict[str, Any]:
    """Empty for free text. OpenAI enforces a schema as far as it goes unless `strict` is true."""
    if not isinstance(form, dict):
        raise wrong("response_format", "must be an object")
    kind = form.get("type") or "text"
    if kind == "text":
        return {}
    if kind == "json_object":
        schema = form.get("schema")
        shape = {"type": "object"} if schema is None else _schema("response_format.schema", schema)
        return {"json_schema": shape, "strict": False}
    if kind == "json_schema":
        wrapper = form.get("json_schema")
        where = "response_format.json_schema"
        if not isinstance(wrapper, dict) and "schema" in form:
            wrapper, where = form, "response_format"  # llama-server's, and the Responses API's
        if not isinstance(wrapper, dict):
            raise wrong(f"{where}.schema", "must be a JSON schema")
        strict = wrapper.get("strict")
        if not isinstance(strict, (bool, type(None))):
            raise wrong(f"{where}.strict", "must be true or false")
        return {"json_schema": _schema(f"{where}.schema", wrapper.get("schema")), "strict": bool(strict)}
    raise wrong("response_format.type", "must be text, json_object or json_schema")


def _guided(where: str, word: str, value: Any) -> dict[str, Any]:
    if word == "json":
        return {"json_schema": _schema(where, value), "strict": False}
    if word == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
            raise wrong(where, "must be a list of texts")
        return {"regex": "|".join(map(re.escape, value))}
    if not isinstance(value, str):
        raise wrong(where, "must be a string")
    return {word: value}


def _schema(where: str, value: Any) -> dict[str, Any]:
    if value is True:
        return {}
    if value is False:
        raise wrong(where, "is false: no text fits it")
    if not isinstance(value, dict):
        raise wrong(where, "must be a JSON schema")
    return value
