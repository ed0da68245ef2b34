"""The items of a request's `input` as messages of the protocol.

What the assistant did in one turn comes as several items: its reasoning, its message, its calls. Templates want them as
one message.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rbee_remote.protocol import Message
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.messages import string, text_of
from rbee_remote.worker.http.responses.tools import FunctionNames

_ROLES = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
_MOST_KIND = 40


@dataclasses.dataclass
class _Turn:
    """Of the assistant."""

    reasoning: str = ""
    content: str | None = None
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not self.reasoning and self.content is None and not self.calls

    def message(self) -> Message:
        return Message("assistant", self.content or "", tuple(self.calls), reasoning=self.reasoning)


def read_items(items: Any, instructions: str, names: FunctionNames) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages, and a warning for each kind of item that is left out. instructions: "" for none. names: of
    functions, to make them safe. Raises RemoteError USAGE naming the field."""
    reader = _Reader(names)
    if instructions:
        reader.messages.append(Message("system", string("instructions", instructions)))
    if isinstance(items, str):
        reader.messages.append(Message("user", string("input", items)))
    elif isinstance(items, list) and items:
        for index, item in enumerate(items):
            reader.take(f"input[{index}]", item)
    else:
        raise wrong("input", "is missing" if items is None else "must be a text or a list of items, not empty")
    reader.end_turn()
    if not reader.messages:
        raise wrong("input", "has no item that this worker reads")
    return tuple(_merged(reader.messages)), tuple(reader.left_out)


def _merged(messages: list[Message]) -> list[Message]:
    """Instructions and the system's messages right after them as one: many templates know one alone, at the start."""
    count = next((at for at, message in enumerate(messages) if message.role != "system"), len(messages))
    if count < 2:
        return messages
    return [Message("system", "\n\n".join(message.content for message in messages[:count])), *messages[count:]]


class _Reader:
    def __init__(self, names: FunctionNames) -> None:
        self.messages: list[Message] = []
        self.left_out: dict[str, None] = {}
        self._names = names
        self._turn = _Turn()
        self._called: dict[str, str] = {}

    def take(self, where: str, item: Any) -> None:
        if not isinstance(item, dict):
            raise wrong(where, "must be an object")
        kind = item.get("type") or ("message" if "role" in item else "item_reference" if "id" in item else None)
        if kind == "message":
            self._message(where, item)
        elif kind == "function_call":
            self._call(where, item)
        elif kind == "function_call_output":
            self._output(where, item)
        elif kind == "reasoning":
            self._reasoning(where, item)
        elif kind == "item_reference":
            raise wrong(where, "refers to an item of before, and this server keeps none: send the item itself")
        elif isinstance(kind, str):
            self.left_out[f"input items of type {kind[:_MOST_KIND]} are left out: this worker does not know them"] = (
                None
            )
        else:
            raise wrong(f"{where}.type", "is missing" if kind is None else "must be a string")

    def end_turn(self) -> None:
        if not self._turn.is_empty:
            self.messages.append(self._turn.message())
        self._turn = _Turn()

    def _message(self, where: str, item: dict[str, Any]) -> None:
        said = item.get("role")
        role = _ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            raise wrong(f"{where}.role", f"must be {', '.join(_ROLES)}, got {said!r:.40}")
        content = text_of(f"{where}.content", item.get("content"))
        if role != "assistant":
            self.end_turn()
            self.messages.append(Message(role, content))
            return
        if self._turn.content is not None or self._turn.calls:
            self.end_turn()
        self._turn.content = content

    def _reasoning(self, where: str, item: dict[str, Any]) -> None:
        """The reasoning itself, its summary where that is all that the client has. What is encrypted is for who
        encrypted it."""
        text = text_of(f"{where}.content", item.get("content")) or text_of(f"{where}.summary", item.get("summary"))
        if self._turn.content is not None and not self._turn.calls:
            self.end_turn()
        self._turn.reasoning = "\n".join(filter(None, (self._turn.reasoning, text)))

    def _call(self, where: str, item: dict[str, Any]) -> None:
        identity, name = string(f"{where}.call_id", item.get("call_id")), string(f"{where}.name", item.get("name"))
        space = string(f"{where}.namespace", item.get("namespace") or "")
        arguments = item.get("arguments") or "{}"
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {
            "name": self._names.safe(self._names.joined(space, name)),
            "arguments": string(f"{where}.arguments", arguments),
        }
        self._called[identity] = function["name"]
        self._turn.calls.append({"id": identity, "type": "function", "function": function})

    def _output(self, where: str, item: dict[str, Any]) -> None:
        identity = string(f"{where}.call_id", item.get("call_id"))
        output = text_of(f"{where}.output", item.get("output"))
        self.end_turn()
        self.messages.append(Message("tool", output, tool_call_id=identity, name=self._called.get(identity, "")))
