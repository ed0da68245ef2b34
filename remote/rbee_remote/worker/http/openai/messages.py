"""Messages as OpenAI's clients send them to messages of the protocol."""

from __future__ import annotations

import json
from typing import Any

from rbee_remote.protocol import Message
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.tools import ToolNames
from rbee_remote.worker.requests.prompt import check_text

#: Reasoning models' word for the system, and the one that tools had before they were tools.
_ROLES = {"developer": "system", "function": "tool"}
#: Kinds of a part, with the field that has its text. The first two are those of chat completions.
_TEXTS = {
    "text": "text",
    "refusal": "refusal",
    "input_text": "text",
    "output_text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
}


def read_messages(messages: tuple[dict[str, Any], ...], names: ToolNames) -> tuple[Message, ...]:
    """names: of functions, to make them safe. Raises RemoteError USAGE naming the field. Which roles there are is for
    `prompt.check` to say."""
    if not messages:
        raise wrong("messages", "must hold at least one message")
    return tuple(_message(f"messages[{index}]", message, names) for index, message in enumerate(messages))


def _message(where: str, message: dict[str, Any], names: ToolNames) -> Message:
    role = string(f"{where}.role", message.get("role"))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise wrong(f"{where}.tool_calls", "must be a list")
    name = string(f"{where}.name", message.get("name") or "")
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return Message(
        role=_ROLES.get(role, role),
        content=text_of(f"{where}.content", message.get("content")),
        tool_calls=tuple(_call(f"{where}.tool_calls[{index}]", call, names) for index, call in enumerate(calls)),
        tool_call_id=string(f"{where}.tool_call_id", message.get("tool_call_id") or ""),
        name=names.safe(name) if name and role in ("tool", "function") else name,
        reasoning=string(f"{where}.reasoning_content", reasoning),
    )


def text_of(where: str, content: Any) -> str:
    """Of a message's content, or what is like one: a string, or parts of it. Raises RemoteError USAGE naming the
    field."""
    if content is None:
        return ""
    if isinstance(content, str):
        return string(where, content)
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list of parts")
    return "".join(_part(f"{where}[{index}]", part) for index, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    if isinstance(part, str):
        return string(where, part)
    kind = (part.get("type") or "text") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise wrong(where, f"must be a text part, got {kind!r:.40}: this worker reads text alone")
    return string(f"{where}.{_TEXTS[kind]}", part.get(_TEXTS[kind]) or "")


def _call(where: str, call: Any, names: ToolNames) -> dict[str, Any]:
    """A call that the assistant made, with what templates look at and nothing else."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise wrong(f"{where}.function", "must be an object")
    name = string(f"{where}.function.name", function.get("name"))
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    arguments = string(f"{where}.function.arguments", arguments)
    identity = string(f"{where}.id", call.get("id") or "")
    return {"id": identity, "type": "function", "function": {"name": names.safe(name), "arguments": arguments}}


def string(where: str, value: Any) -> str:
    """Raises RemoteError USAGE naming the field, for what is no text too."""
    if not isinstance(value, str):
        raise wrong(where, "is missing" if value is None else "must be a string")
    check_text(where, value)
    return value
