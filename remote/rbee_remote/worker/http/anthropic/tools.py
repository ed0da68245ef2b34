"""Tools of a Messages request: those that the client runs are served, what Anthropic's own servers run is left out."""

from __future__ import annotations

from typing import Any

from rbee_remote.protocol import ToolOptions
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.tools import ToolNames, read_tools

_MOST_KIND = 40
_MODES = {"auto": "auto", "any": "required", "none": "none"}


def tools_of(
    tools: Any, choice: dict[str, Any], names: ToolNames
) -> tuple[ToolOptions, dict[str, str], tuple[str, ...]]:
    """The functions, where each stands (`Job.places`), and a warning for each kind of tool that is left out. names:
    gets those of the functions. Raises RemoteError USAGE naming the field."""
    functions: list[dict[str, Any]] = []
    places: dict[str, str] = {}
    left_out: dict[str, None] = {}
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise wrong(f"tools[{index}]", "must be an object")
        kind = tool.get("type") or "custom"
        if not isinstance(kind, str):
            raise wrong(f"tools[{index}].type", "must be a string")
        if kind == "custom":
            here = f"tools[{len(functions)}].function"
            places |= {here: f"tools[{index}]", f"{here}.parameters": f"tools[{index}].input_schema"}
            functions.append(_function(f"tools[{index}]", tool))
        else:
            left_out[f"tools of type {kind[:_MOST_KIND]} are left out: this worker calls custom tools alone"] = None
    parallel = choice.get("disable_parallel_tool_use")
    if not isinstance(parallel, (bool, type(None))):
        raise wrong("tool_choice.disable_parallel_tool_use", "must be true or false")
    options = read_tools(tuple(functions), _choice(choice), False if parallel else None, names)
    return options, places, tuple(left_out)


def _function(where: str, tool: dict[str, Any]) -> dict[str, Any]:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.name", "must be a string that is not empty")
    said = {"name": name, "description": tool.get("description"), "parameters": tool.get("input_schema")}
    return {"type": "function", "function": {**said, "strict": tool.get("strict")}}


def _choice(choice: dict[str, Any]) -> Any:
    kind = choice.get("type") or "auto"
    if kind == "tool":
        name = choice.get("name")
        if not isinstance(name, str):
            raise wrong("tool_choice.name", "must name a tool")
        return {"type": "function", "function": {"name": name}}
    if not isinstance(kind, str) or kind not in _MODES:
        raise wrong("tool_choice.type", f"must be auto, any, tool or none, got {kind!r:.40}")
    return _MODES[kind]
