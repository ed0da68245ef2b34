"""A chat in the shape that a template takes: its turns, and what is done to them where the template refuses. Pure.

A turn is a message as templates know it: a dict that has `role` and `content`, and of other keys those that say
something, because many templates ask only whether they are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from rbee_remote.protocol import Message
from rbee_remote.worker.templates import reasoning

Turn = dict[str, Any]
Tool = dict[str, Any]

#: Roles that only some templates know, as those that all do.
ROLES = {"developer": "system", "function": "tool"}

_DESCRIPTION = """\
You can call functions. Each is described by one JSON object between <tools> and </tools>:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and its arguments between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the function's name", "arguments": {{"a parameter's name": "its value"}}}}
</tool_call>
What the function returns comes in the next message, between <tool_response> and </tool_response>. Call a function \
only where you need one; otherwise answer directly."""


def turn(message: Message, traits: reasoning.Traits) -> Turn:
    """The assistant's own reasoning stands apart from the text where the template knows of reasoning."""
    role = ROLES.get(message.role, message.role)
    content, thought = message.content, message.reasoning
    if role == "assistant" and traits.pair and not thought:
        thought, content = reasoning.split(content, traits.pair) or ("", content)
        if traits.field:
            thought, content = thought.strip("\n"), content.lstrip("\n") if thought else content
    elif thought and traits.pair and not traits.field:
        thought, content = f"\n{thought}\n", f"\n\n{content}"
    made: Turn = {"role": role, "content": content}
    if thought and (traits.pair or traits.field):
        made |= {"thinking": thought, "reasoning_content": thought}
    if message.tool_calls:
        made["tool_calls"] = list(message.tool_calls)
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.name:
        made["name"] = message.name
    return made


def with_object(call: dict[str, Any]) -> dict[str, Any]:
    """A call with its arguments as an object, for templates that write JSON of them."""
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call  # what a model wrote need not be JSON; the template gets it as it is
    return {**call, "function": {**function, "arguments": arguments}}


def inlined(turns: Sequence[Turn], pair: tuple[str, str]) -> list[Turn]:
    """Reasoning at the beginning of the text, for templates that look for it there."""
    return [
        {**without_reasoning(turn), "content": f"{pair[0]}{turn['reasoning_content']}{pair[1]}{turn['content']}"}
        if "reasoning_content" in turn
        else turn
        for turn in turns
    ]


def without_reasoning(turn: Turn) -> Turn:
    return {key: value for key, value in turn.items() if key not in ("thinking", "reasoning_content")}


def whole_tool(tool: Tool) -> Tool:
    """With a description and parameters: templates that write them fail where there are none."""
    function = tool["function"]
    filled = {**function, "description": function.get("description") or "", "parameters": function.get("parameters")}
    if not filled["parameters"]:
        filled["parameters"] = {"type": "object", "properties": {}}
    return {**tool, "function": filled}


def with_properties(tool: Tool) -> Tool:
    function = tool["function"]
    return {**tool, "function": {**function, "parameters": {"properties": {}, **function["parameters"]}}}


def plain(tool: Tool) -> Tool:
    """With properties in the few forms that templates know which write types themselves, as Hermes' and Command R's."""
    function = tool["function"]
    parameters = function["parameters"]
    properties = {name: _plain(schema) for name, schema in parameters["properties"].items()}
    return {**tool, "function": {**function, "parameters": {**parameters, "properties": properties}}}


def _plain(schema: Any) -> dict[str, Any]:
    """One type besides null, or none, and what goes with it."""
    given = schema if isinstance(schema, dict) else {}
    kinds = given.get("type")
    known = [kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if kind not in (None, "null")]
    made = {"description": "", **{key: value for key, value in given.items() if key != "type"}}
    if len(known) != 1:
        return made
    made["type"] = known[0]
    part = {"array": "items", "object": "additionalProperties"}.get(str(known[0]))
    return {**made, part: _plain(made.get(part))} if part else made


def described(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[Turn]:
    """With the tools in the system's turn, for templates that know nothing of tools."""
    kept = ("name", "description", "parameters")
    lines = [{key: tool["function"][key] for key in kept} for tool in tools]
    text = _DESCRIPTION.format(tools="\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    if turns and turns[0]["role"] == "system":
        return [_joined(turns[0], {"role": "system", "content": text}), *turns[1:]]
    return [{"role": "system", "content": text}, *turns]


def calls_written(turn: Turn) -> Turn:
    """An assistant's turn with its calls in its text, in the form that `described` asks for."""
    if "tool_calls" not in turn:
        return turn
    calls = [_written(call["function"]) for call in turn["tool_calls"]]
    content = "\n".join(filter(None, [turn["content"], *calls]))
    return {**{key: value for key, value in turn.items() if key != "tool_calls"}, "content": content}


def results_written(turn: Turn) -> Turn:
    """What a tool has answered, as something that the user says."""
    if turn["role"] != "tool":
        return turn
    return {"role": "user", "content": f"<tool_response>\n{turn['content']}\n</tool_response>"}


def _written(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments or "{}"}}}\n</tool_call>'


def ladder(turns: Sequence[Turn], tools: Sequence[Tool]) -> list[tuple[list[Turn], list[Tool]]]:
    """What to try, one after the other, where a template refuses a chat or fails on it."""
    steps: list[Callable[[list[Turn]], list[Turn]]] = [_calls_without_reasoning, joined, fold_later, fold]
    shaped = [list(turns)]
    for change in steps:
        shaped.append(change(shaped[-1]))
    filled = [with_properties(tool) for tool in tools]
    tried = [(list(turns), list(tools))]
    for attempt in ((shape, given) for given in (filled, [*map(plain, filled)]) for shape in shaped):
        if attempt not in tried:
            tried.append(attempt)
    return tried[1:]


def _calls_without_reasoning(turns: list[Turn]) -> list[Turn]:
    """gpt-oss has no room for reasoning beside a text and a call."""
    return [without_reasoning(turn) if turn.get("tool_calls") and turn["content"] else turn for turn in turns]


def joined(turns: Sequence[Turn]) -> list[Turn]:
    """Neighbours of one role are one turn, with a blank line between what they say."""
    made: list[Turn] = []
    for turn in turns:
        if made and turn["role"] == made[-1]["role"] != "tool":
            made[-1] = _joined(made[-1], turn)
        else:
            made.append(turn)
    return made


def fold_later(turns: Sequence[Turn]) -> list[Turn]:
    """What the system says behind the beginning is said by the user."""
    return joined([*turns[:1], *_folded(turns[1:])])


def fold(turns: Sequence[Turn]) -> list[Turn]:
    """All that the system says is said by the user."""
    return joined(_folded(turns))


def _folded(turns: Sequence[Turn]) -> list[Turn]:
    """The system's turns stand in the user's next, or for themselves where the next one is somebody else's."""
    return [{**turn, "role": "user"} if turn["role"] == "system" else turn for turn in turns]


def _joined(first: Turn, second: Turn) -> Turn:
    content = "\n\n".join(filter(None, [first["content"], second["content"]]))
    made = {**first, **second, "content": content}
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        made["tool_calls"] = calls
    return made
