"""Chats by which one sees what a template makes of tools, calls and results: words that stand nowhere else."""

from __future__ import annotations

import json
from typing import Any

TOOL_NAME = "probe_of_rbee"
CALL_NAME = "called_by_rbee"
ARGUMENT = "given_by_rbee"
RESULT = "answered_to_rbee"

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": TOOL_NAME,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"p": {"type": "string", "description": "d"}},
            "required": ["p"],
        },
    },
}
#: A call's arguments as an object, and as JSON.
ARGUMENTS: tuple[Any, Any] = ({ARGUMENT: 1}, json.dumps({ARGUMENT: 1}))
#: How Python writes the first.
PYTHON = f"{{'{ARGUMENT}'"

ASKED: dict[str, Any] = {"role": "user", "content": "u"}
ANSWERED: tuple[dict[str, Any], ...] = (ASKED, {"role": "assistant", "content": RESULT}, ASKED)


def called(arguments: Any) -> list[dict[str, Any]]:
    """A chat in which a tool was called and has answered."""
    call = {"id": "call00001", "type": "function", "function": {"name": CALL_NAME, "arguments": arguments}}
    answer = {"role": "tool", "content": RESULT, "tool_call_id": "call00001", "name": TOOL_NAME}
    return [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]
