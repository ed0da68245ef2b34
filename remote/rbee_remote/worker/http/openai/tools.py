"""Tools of a chat request: what the template is given, and the JSON schema that forces a call."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rbee_remote.worker.http.openai.errors import wrong

#: OpenAI's rule for names of functions.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """tools: for the template, in OpenAI's form. parameters: of their functions, by name. schema: of the JSON that the
    model has to write, where a call is forced. parallel: whether more than one call may be made."""

    tools: tuple[dict[str, Any], ...]
    parameters: dict[str, dict[str, Any]]
    schema: dict[str, Any] | None
    parallel: bool


def tool_use(tools: list[Any], choice: Any, parallel: bool | None) -> ToolUse | None:
    """None where no tool may be called. Raises RemoteError USAGE naming the field.

    choice: none, auto, required, or the function that must be called. A forced call is one alone unless `parallel`
    asks for several: a small model might never end its list.
    """
    names = tuple(_name(f"tools[{index}]", tool) for index, tool in enumerate(tools))
    if choice == "none" or (not tools and choice in (None, "auto")):
        return None
    parameters = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    if choice in (None, "auto"):
        return ToolUse(tuple(tools), parameters, None, parallel is not False)
    chosen = range(len(tools)) if choice == "required" else [_chosen(choice, names)]
    if not tools:
        raise wrong("tool_choice", "needs tools to choose from")
    schema = _forced([tools[index]["function"] for index in chosen])
    if parallel and choice == "required":
        items = {key: value for key, value in schema.items() if key != "$defs"}
        schema = {"type": "array", "items": items, "minItems": 1, "$defs": schema["$defs"]}
    return ToolUse(tuple(tools), parameters, schema, bool(parallel))


def _name(where: str, tool: Any) -> str:
    """The name of a tool's function, once all of the tool is known to be in order."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise wrong(f"{where}.type", "must be function")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong(f"{where}.function", "must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise wrong(f"{where}.function.name", "must be 1 to 64 letters, digits, _ or -")
    for key, kind, what in (("description", str, "a string"), ("parameters", dict, "a JSON schema")):
        if not isinstance(function.get(key), (kind, type(None))):
            raise wrong(f"{where}.function.{key}", f"must be {what}")
    return name


def _chosen(choice: Any, names: tuple[str, ...]) -> int:
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict):
        raise wrong("tool_choice", "must be none, auto, required or a function")
    name = function.get("name")
    if name not in names:
        raise wrong("tool_choice", f"there is no tool {name!r}")
    return names.index(name)


def _forced(functions: list[dict[str, Any]]) -> dict[str, Any]:
    """A schema of one call of one of the functions, in the form that most models write: name and arguments."""
    definitions: dict[str, Any] = {}
    calls = []
    for number, function in enumerate(functions):
        arguments = _hoisted(function.get("parameters") or _NO_ARGUMENTS, f"tool{number}", definitions)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), "$defs": definitions}


def _hoisted(schema: dict[str, Any], prefix: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """`schema` as part of another: its own definitions go into `definitions`, under names that begin with `prefix`,
    and its references follow them."""
    groups = {group: schema[group] for group in ("$defs", "definitions") if isinstance(schema.get(group), dict)}
    references = [f"#/{group}/{name}" for group, members in groups.items() for name in members]
    names = {reference: f"{prefix}-{number}" for number, reference in enumerate(references)}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, dict):
            return value
        reference = value.get("$ref")
        if isinstance(reference, str):
            if reference not in names:
                raise wrong("tools", f"the reference {reference!r} does not lead to one of the schema's $defs")
            return {**value, "$ref": f"#/$defs/{names[reference]}"}
        return {key: moved(item) for key, item in value.items()}

    for group, members in groups.items():
        for name, definition in members.items():
            definitions[names[f"#/{group}/{name}"]] = moved(definition)
    inner: dict[str, Any] = moved({key: value for key, value in schema.items() if key not in groups})
    return inner
