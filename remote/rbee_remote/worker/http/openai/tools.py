"""Tools of a chat request, as OpenAI's clients and their like send them, to those of the protocol."""

from __future__ import annotations

import re
from typing import Any

from rbee_remote.protocol import ToolOptions
from rbee_remote.worker.http.openai.errors import wrong

_MOST_NAME = 64
#: Words for a choice, with the protocol's. Mistral's clients say any.
_CHOICES = {"auto": "auto", "none": "none", "required": "required", "any": "required"}


class ToolNames:
    """Names of functions as templates and grammars take them, 64 letters, digits, _ and - at most, and back."""

    def __init__(self) -> None:
        self._safe: dict[str, str] = {}
        self._given: dict[str, str] = {}

    def safe(self, given: str) -> str:
        if given not in self._safe:
            base = re.sub(r"[^a-zA-Z0-9_-]", "_", given)[:_MOST_NAME]
            name, number = base, 1
            while name in self._given:
                number += 1
                name = f"{base[: _MOST_NAME - 8]}_{number}"
            self._safe[given], self._given[name] = name, given
        return self._safe[given]

    def given(self, safe: str) -> str:
        return self._given.get(safe, safe)


def read_tools(tools: tuple[Any, ...], choice: Any, parallel: bool | None, names: ToolNames) -> ToolOptions:
    """names: gets those of the tools. Raises RemoteError USAGE naming the field; what is in a function is for
    `tool_use.check` to say."""
    functions = tuple(_tool(f"tools[{index}]", tool, names) for index, tool in enumerate(tools))
    mode, chosen = _choice(choice)
    known = {function["function"]["name"] for function in functions}
    only = tuple(names.safe(name) for name in chosen)
    unknown = next((name for name, safe in zip(chosen, only, strict=True) if safe not in known), None)
    if unknown is not None:
        raise wrong("tool_choice", f"there is no tool {unknown[:_MOST_NAME]!r}")
    if mode == "required" and not functions:
        raise wrong("tool_choice", "needs tools to choose from")
    if mode == "none" or not functions:
        return ToolOptions()
    named = isinstance(choice, dict) and choice.get("type") == "function"
    return ToolOptions(functions, mode, only, parallel=False if named else parallel)


def _tool(where: str, tool: Any, names: ToolNames) -> dict[str, Any]:
    """With what is null left out, and the name made safe."""
    if not isinstance(tool, dict):
        raise wrong(where, "must be an object")
    if (tool.get("type") or "function") != "function":
        raise wrong(f"{where}.type", "must be function")
    function = tool.get("function")
    if function is None and "name" in tool:  # as the Responses API has them
        function = {key: value for key, value in tool.items() if key != "type"}
    if not isinstance(function, dict):
        raise wrong(f"{where}.function", "must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.function.name", "must be a string that is not empty")
    said = {key: value for key, value in function.items() if value is not None}
    return {"type": "function", "function": {**said, "name": names.safe(name)}}


def _choice(choice: Any) -> tuple[str, list[str]]:
    """The protocol's word for it, and the names that it is about."""
    if choice is None:
        return "auto", []
    if isinstance(choice, str) and choice in _CHOICES:
        return _CHOICES[choice], []
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return "required", [_name(choice)]
    if kind == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        tools = allowed.get("tools") if isinstance(allowed, dict) else None
        if not isinstance(tools, list) or not tools:
            raise wrong("tool_choice.allowed_tools.tools", "must be a list of tools")
        mode = allowed.get("mode") or "auto"
        if mode not in ("auto", "required"):
            raise wrong("tool_choice.allowed_tools.mode", "must be auto or required")
        return mode, [_name(tool) for tool in tools]
    raise wrong("tool_choice", "must be none, auto, required, a function or allowed_tools")


def _name(named: Any) -> str:
    function = named.get("function", named) if isinstance(named, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise wrong("tool_choice", "must name a function")
    return name
