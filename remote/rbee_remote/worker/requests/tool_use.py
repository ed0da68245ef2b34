"""What a request says of tools: whether it makes sense, and what may be called."""

from __future__ import annotations

from typing import Any

from rbee_remote.protocol import ErrorCode, RemoteError, ToolOptions
from rbee_remote.protocol.limits import FUNCTION_NAME

CHOICES = ("auto", "required", "none")
#: Of a function that says nothing of its parameters.
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


def check(options: ToolOptions) -> None:
    """Raises RemoteError USAGE naming the field."""
    names = [_checked_name(f"tools[{index}]", tool) for index, tool in enumerate(options.functions)]
    double = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if double:
        raise _usage(f"tools[{names.index(double)}].function.name", f"{double!r} is the name of two functions")
    if options.choice not in CHOICES:
        raise _usage("tool_choice", f"must be one of {', '.join(CHOICES)}, got {options.choice[:40]!r}")
    if options.choice == "required" and not names:
        raise _usage("tool_choice", "needs tools to choose from")
    unknown = next((name for name in options.only if name not in names), None)
    if unknown is not None:
        raise _usage("tool_choice", f"there is no tool {unknown[:64]!r}")


def callable_functions(options: ToolOptions) -> dict[str, dict[str, Any]]:
    """The functions that may be called, by name; none where tools are switched off."""
    if options.choice == "none":
        return {}
    functions = {tool["function"]["name"]: tool["function"] for tool in options.functions}
    return {name: function for name, function in functions.items() if not options.only or name in options.only}


def _checked_name(where: str, tool: dict[str, Any]) -> str:
    """The name of a tool's function, once all of the tool is known to be in order."""
    if tool.get("type") != "function":
        raise _usage(f"{where}.type", "must be function")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise _usage(f"{where}.function", "must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        raise _usage(f"{where}.function.name", "must be 1 to 64 letters, digits, _ or -")
    kinds = (("description", str, "a string"), ("parameters", dict, "a JSON schema"), ("strict", bool, "true or false"))
    for key, kind, what in kinds:
        if not isinstance(function.get(key), (kind, type(None))):
            raise _usage(f"{where}.function.{key}", f"must be {what}")
    return name


def _usage(field: str, what: str) -> RemoteError:
    return RemoteError(ErrorCode.USAGE, f"{field}: {what}", details={"field": field})
