"""Tools of a response request: functions are served, what OpenAI's own servers run is left out."""

from __future__ import annotations

from typing import Any

from rbee_remote.protocol import ToolOptions
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.tools import ToolNames, read_tools

_OF_FUNCTIONS = ("name", "description", "parameters", "strict")
_MOST_KIND = 40


def tools_of(tools: Any, choice: Any, parallel: bool | None, names: ToolNames) -> tuple[ToolOptions, tuple[str, ...]]:
    """The functions, and a warning for each kind of tool that is left out. names: gets those of the functions. Raises
    RemoteError USAGE naming the field."""
    functions: list[dict[str, Any]] = []
    left_out: dict[str, None] = {}
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str):
            raise wrong(f"tools[{index}].type" if isinstance(tool, dict) else f"tools[{index}]", "must name the tool")
        if kind == "function":
            functions.append(_function(f"tools[{index}]", tool))
        else:
            left_out[f"tools of type {kind[:_MOST_KIND]} are left out: this worker calls functions alone"] = None
    return read_tools(tuple(functions), _choice(choice), parallel, names), tuple(left_out)


def served(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not left out, as a response tells of them. tools: as `tools_of` has taken them."""
    functions = [tool for tool in tools if tool["type"] == "function"]
    given = [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in functions]
    return [{"type": "function", **{key: each.get(key) for key in _OF_FUNCTIONS}} for each in given]


def _function(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    """As chat completions have it; some clients send that form itself."""
    given = tool["function"] if isinstance(tool.get("function"), dict) else tool
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.name", "must be a string that is not empty")
    return {"type": "function", "function": {key: given[key] for key in _OF_FUNCTIONS if key in given}}


def _choice(choice: Any) -> Any:
    """Without the tools that are left out. Raises RemoteError USAGE where the choice is one of them."""
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        kept = [each for each in choice["tools"] if isinstance(each, dict) and each.get("type") == "function"]
        return {**choice, "tools": kept} if kept else "none"
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise wrong("tool_choice", f"asks for a tool of type {kind[:_MOST_KIND]}: this worker calls functions alone")
    return choice
