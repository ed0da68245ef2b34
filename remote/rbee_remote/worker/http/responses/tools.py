"""Tools of a response request: functions are served, also those of namespaces, in which codex has the tools of its MCP
servers; what OpenAI's own servers run is left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rbee_remote.protocol import ToolOptions
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.tools import ToolNames, read_tools

_OF_FUNCTIONS = ("name", "description", "parameters", "strict")
_MOST_KIND = 40


class FunctionNames(ToolNames):
    """Those of namespaces, too: a function of one has a single name for the model, made of both."""

    def __init__(self) -> None:
        super().__init__()
        self._spaces: dict[str, tuple[str, str]] = {}

    def joined(self, space: str, name: str) -> str:
        """The one name, to be made safe; no function without a namespace (space: "") may have a dot."""
        if not space:
            return name
        self._spaces[f"{space}.{name}"] = space, name
        return f"{space}.{name}"

    def told(self, safe: str) -> dict[str, str]:
        """What an item says of the function that it calls."""
        space, name = self._spaces.get(self.given(safe), ("", self.given(safe)))
        return {"name": name, **({"namespace": space} if space else {})}


def tools_of(
    tools: Any, choice: Any, parallel: bool | None, names: FunctionNames
) -> tuple[ToolOptions, dict[str, str], tuple[str, ...]]:
    """The functions, where each stands (`Job.places`), and a warning for each kind of tool that is left out. names:
    gets those of the functions. Raises RemoteError USAGE naming the field."""
    left_out: dict[str, None] = {}
    found = [each for index, tool in enumerate(tools) for each in _functions(f"tools[{index}]", tool, names, left_out)]
    places = {f"tools[{number}].function": where for number, (where, _) in enumerate(found)}
    functions = tuple(function for _, function in found)
    return read_tools(functions, _choice(choice, names), parallel, names), places, tuple(left_out)


def served(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not left out, as a response tells of them. tools: as `tools_of` has taken them."""
    told: list[dict[str, Any]] = []
    for tool in tools:
        if tool["type"] == "namespace":
            within = served([each for each in tool["tools"] if each["type"] == "function"])
            told.append({**tool, "description": tool.get("description") or "", "tools": within})
        elif tool["type"] == "function":
            given = tool["function"] if isinstance(tool.get("function"), dict) else tool
            told.append({"type": "function", **{key: given.get(key) for key in _OF_FUNCTIONS}})
    return told


def _functions(
    where: str, tool: Any, names: FunctionNames, left_out: dict[str, None], space: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a tool has of functions, each with where it stands. left_out: gets a warning where it is none. space: the
    namespace that it is in."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(kind, str):
        raise wrong(f"{where}.type" if isinstance(tool, dict) else where, "must name the tool")
    if kind == "function":
        yield _function(where, tool, names, space)
    elif kind == "namespace" and not space:
        name, within = _name(where, tool), tool.get("tools")
        if not isinstance(within, list):
            raise wrong(f"{where}.tools", "must be a list of tools")
        for index, each in enumerate(within):
            yield from _functions(f"{where}.tools[{index}]", each, names, left_out, name)
    else:
        left_out[f"tools of type {kind[:_MOST_KIND]} are left out: this worker calls functions alone"] = None


def _function(where: str, tool: dict[str, Any], names: FunctionNames, space: str) -> tuple[str, dict[str, Any]]:
    """As chat completions have it; some clients send that form itself."""
    if isinstance(tool.get("function"), dict):
        where, tool = f"{where}.function", tool["function"]
    function = {key: tool[key] for key in _OF_FUNCTIONS if key in tool}
    return where, {"type": "function", "function": {**function, "name": names.joined(space, _name(where, tool))}}


def _name(where: str, named: dict[str, Any]) -> str:
    name = named.get("name")
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.name", "must be a string that is not empty")
    return name


def _choice(choice: Any, names: FunctionNames) -> Any:
    """Without the tools that are left out. Raises RemoteError USAGE where the choice is one of them."""
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        kept = [each for each in choice["tools"] if isinstance(each, dict) and each.get("type") == "function"]
        return {**choice, "tools": [_chosen(each, names) for each in kept]} if kept else "none"
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise wrong("tool_choice", f"asks for a tool of type {kind[:_MOST_KIND]}: this worker calls functions alone")
    return _chosen(choice, names) if kind == "function" else choice


def _chosen(choice: dict[str, Any], names: FunctionNames) -> dict[str, Any]:
    space, name = choice.get("namespace"), choice.get("name")
    return {**choice, "name": names.joined(space, name)} if isinstance(space, str) and isinstance(name, str) else choice
