"""--tools of `rbee infer`: functions that the model may call, as JSON in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rbee.base.errors import UsageError
from rbee.cli.constraints import read_text
from rbee_remote.protocol import RemoteError, ToolOptions
from rbee_remote.protocol.limits import FUNCTION_NAME

_HINT = '[{"name": "get_weather", "description": "…", "parameters": {"type": "object", "properties": {…}}}]'


def read_tools(path: Path) -> tuple[dict[str, Any], ...]:
    """Tools in OpenAI's form; a function by itself stands for a tool of it.

    Raises UsageError that names the file, and which of them is wrong.
    """
    try:
        tools = json.loads(read_text("--tools", path))
    except RecursionError as error:
        raise UsageError(f"--tools: {path} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"--tools: {path} is not JSON: {error}") from error
    if not isinstance(tools, list) or not tools:
        raise UsageError(f"--tools: {path} is not a list of functions", hint=_HINT)
    functions = [_function(tool, f"--tools: {path}[{index}]") for index, tool in enumerate(tools)]
    names = [function["name"] for function in functions]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--tools: {path} has two functions {twice!r}")
    return tuple({"type": "function", "function": function} for function in functions)


def _function(tool: Any, where: str) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else tool
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise UsageError(f"{where} is not a function", hint=_HINT)
    for key, kind, what in (
        ("name", str, "text"),
        ("description", str, "text"),
        ("parameters", dict, "a JSON schema, which is an object"),
        ("strict", bool, "true or false"),
    ):
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise UsageError(f"{where}: {key} has to be {what}")
    if not (function.get("name") or "").strip():
        raise UsageError(f"{where} has no name", hint=_HINT)
    if not FUNCTION_NAME.fullmatch(function["name"]):
        raise UsageError(f"{where}: name has to be 1 to 64 letters, digits, _ or -")
    return {key: value for key, value in function.items() if value is not None and key != "type"}


def check_parameters(tools: ToolOptions, path: Path) -> None:
    """Raises UsageError for parameters that no call can be made to fit. Where the model is free, none is made to."""
    from rbee_remote.constraints.rules import json_rule

    functions = [(index, tool["function"]) for index, tool in enumerate(tools.functions)]
    called = [(index, function) for index, function in functions if function["name"] in tools.only or not tools.only]
    if tools.choice != "required" and not any(function.get("strict") for _, function in called):
        return
    for index, function in called:
        try:
            if "parameters" in function:
                where = f"{path}[{index}]: parameters"
                json_rule(function["parameters"], strict=bool(function.get("strict")), where=where)
        except RemoteError as error:
            raise UsageError(f"--tools: {error.message}") from error
