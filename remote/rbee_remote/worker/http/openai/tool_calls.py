"""Finding calls of tools in what a model writes.

    Hermes, Qwen   <tool_call>{"name": …, "arguments": {…}}</tool_call>, any number of them, after other text
    Qwen 3 Coder   <tool_call><function=NAME><parameter=KEY>value</parameter>…</function></tool_call>, likewise
    Mistral        [TOOL_CALLS][{"name": …, "arguments": {…}}, …], or NAME{…}, or NAME[ARGS]{…}
    Llama 3        {"name": …, "parameters": {…}} and nothing else, also after <|python_tag|>

Where a mark is a control token of the model, it is no text: the same formats are read without it when they are all that
the model wrote and they name a tool that there is.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")
_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>|\Z)\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_NAMED = re.compile(r"\s*([a-zA-Z0-9_-]{1,64})\s*(?:\[ARGS\])?\s*(?=\{)")
_JSON = json.JSONDecoder(parse_constant=lambda name: _no_call(f"{name} is not JSON"))
#: Llama separates calls with semicolons, others with nothing or a line's end.
_BETWEEN = " \r\n\t;"


class Call(NamedTuple):
    """arguments: a JSON object, as text."""

    name: str
    arguments: str

    def encode(self) -> dict[str, Any]:
        """In OpenAI's form. The id has nine letters and digits because Mistral's templates take no other."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": secrets.token_hex(5)[:9], "type": "function", "function": function}


class CallReader:
    """Feed it text as it comes; it gives back what is surely no call, and keeps the rest until the end.

    parameters: of the tools, by name, each a JSON schema. forced: the whole text is a call, or a list of them.
    """

    def __init__(self, parameters: Mapping[str, Mapping[str, Any]], *, forced: bool) -> None:
        self._parameters = parameters
        self._held = ""
        self._forced = forced
        self._said = False  # something came out: what is written without a mark is no call any more

    def feed(self, text: str) -> str:
        self._held += text
        if self._forced or (not self._said and self._may_be_bare()):
            return ""
        certain = _before_mark(self._held)
        out, self._held = self._held[:certain], self._held[certain:]
        self._said = self._said or bool(out)
        return out

    def finish(self) -> tuple[str, list[Call]]:
        """The text that is left, and the calls."""
        held, self._held = self._held, ""
        if held.startswith("<tool_call>"):
            return self._blocks(held)
        text = held.strip()
        unmarked = text.removeprefix("[TOOL_CALLS]").removeprefix("<|python_tag|>")
        calls = _sequence(unmarked)
        if self._forced or unmarked != text or all(call.name in self._parameters for call in calls):
            return ("", calls) if calls else (held, [])
        return held, []

    def _may_be_bare(self) -> bool:
        """Whether what is held, all that the model has written, can become a call without a mark."""
        text = self._held.lstrip()
        if text[:1] in ("", "{", "["):
            return True
        return any(
            name.startswith(text) or (text.startswith(name) and text[len(name) :].lstrip()[:1] in ("", "{", "["))
            for name in self._parameters
        )

    def _blocks(self, text: str) -> tuple[str, list[Call]]:
        """The calls between <tool_call> and its end. Blocks that hold none stay in the text."""
        calls: list[Call] = []

        def replaced(block: re.Match[str]) -> str:
            function = _FUNCTION.fullmatch(block[1])
            found = [self._tagged(function[1], function[2])] if function else _sequence(block[1])
            calls.extend(found)
            return "" if found else block[0]

        left = _HERMES.sub(replaced, text)
        return (left.strip() if calls else left), calls

    def _tagged(self, name: str, body: str) -> Call:
        """A call whose arguments are texts between tags: JSON, unless the tool's schema wants a string."""
        properties = self._parameters.get(name, {}).get("properties")
        arguments = {}
        for key, text in _PARAMETER.findall(body):
            schema = properties.get(key) if isinstance(properties, dict) else None
            is_text = isinstance(schema, dict) and schema.get("type") == "string"
            arguments[key] = text if is_text else _value(text)
        return Call(name, json.dumps(arguments, ensure_ascii=False))


def _before_mark(text: str) -> int:
    """How much of the text stands before a mark, or before what could become one."""
    found = [at for mark in _MARKS if (at := text.find(mark)) >= 0]
    if found:
        return min(found)
    for at in range(max(0, len(text) - max(map(len, _MARKS)) + 1), len(text)):
        if any(mark.startswith(text[at:]) for mark in _MARKS):
            return at
    return len(text)


def _value(text: str) -> Any:
    """What the text says as JSON, else the text."""
    try:
        return _JSON.decode(text)
    except (ValueError, RecursionError):
        return text


def _sequence(text: str) -> list[Call]:
    """The calls that the text consists of, one after another; none if there is anything else in it."""
    try:
        return list(_calls(text))
    except (ValueError, RecursionError):
        return []


def _calls(text: str) -> Iterator[Call]:
    text = text.strip(_BETWEEN)
    while text:
        named = _NAMED.match(text)
        value, end = _JSON.raw_decode(text, named.end() if named else 0)
        text = text[end:].lstrip(_BETWEEN)
        if named:
            yield _call({"name": named[1], "arguments": value})
        else:
            yield from map(_call, value if isinstance(value, list) else [value])


def _call(value: Any) -> Call:
    """Raises ValueError where the value is no call."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        _no_call("a call has a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _JSON.decode(arguments)
    if not isinstance(arguments, dict):
        _no_call("arguments are an object")
    return Call(value["name"], json.dumps(arguments, ensure_ascii=False))


def _no_call(why: str) -> NoReturn:
    raise ValueError(why)
