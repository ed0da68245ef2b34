"""System and messages of a Messages request as messages of the protocol.

Rules
- Turns of one role that follow each other are one, as they are for Anthropic: many templates want them to alternate.
- Results of tools become turns of their own, in the order in which they stand.
- A picture in a result is told to be missing, in text: it would end an agent's session otherwise. Anywhere else it is
  refused, because the question is most likely about it.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rbee_remote.protocol import Message
from rbee_remote.protocol.billing_header import system_without_header
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.tools import ToolNames
from rbee_remote.worker.requests.prompt import check_text

_ROLES = ("user", "assistant", "system")
#: What other servers ran or kept on the way of a conversation: nothing of it is for this one.
_OF_SERVERS = frozenset({"redacted_thinking", "server_tool_use", "container_upload", "compaction", "fallback"})
_MOST_KIND = 40


def read_messages(
    system: Any, messages: tuple[Any, ...], names: ToolNames
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages, and a warning for each kind of content that is left out. names: of functions, to make them safe.
    Raises RemoteError USAGE naming the field."""
    if not messages:
        raise wrong("messages", "must hold at least one message")
    reader = _Reader(names)
    reader.take_system("system", system_without_header(system))
    for index, message in enumerate(messages):
        reader.take(f"messages[{index}]", message)
    return reader.finish(), tuple(reader.left_out)


@dataclasses.dataclass
class _Turn:
    """Of the user or the assistant, as far as it is read."""

    role: str = "user"
    texts: list[str] = dataclasses.field(default_factory=list)
    reasoning: list[str] = dataclasses.field(default_factory=list)
    calls: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def message(self) -> Message:
        """What the assistant said stands as it was said, in one piece: its memory is found by that."""
        content = ("" if self.role == "assistant" else "\n").join(self.texts)
        return Message(self.role, content, tuple(self.calls), reasoning="\n".join(self.reasoning))


class _Reader:
    def __init__(self, names: ToolNames) -> None:
        self.left_out: dict[str, None] = {}
        self._names = names
        self._system: list[str] = []
        self._done: list[Message] = []
        self._turn: _Turn | None = None
        self._called: dict[str, str] = {}

    def finish(self) -> tuple[Message, ...]:
        self._end_turn()
        system = "\n".join(filter(None, self._system))
        return (*([Message("system", system)] if system else []), *self._done)

    def take_system(self, where: str, system: Any) -> None:
        self._system += [] if system is None else self._texts(where, system)

    def take(self, where: str, message: Any) -> None:
        if not isinstance(message, dict):
            raise wrong(where, "must be an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or role not in _ROLES:
            raise wrong(f"{where}.role", f"must be user or assistant, got {role!r:.40}")
        if role == "system":
            self._system_turn(f"{where}.content", content)
            return
        if not isinstance(content, (str, list)):
            raise wrong(f"{where}.content", "is missing" if content is None else "must be a text or a list of blocks")
        turn = self._turn_of(role)
        if isinstance(content, str):
            turn.texts.append(_text(f"{where}.content", content))
            return
        for index, block in enumerate(content):
            self._block(f"{where}.content[{index}]", role, block)

    def _system_turn(self, where: str, content: Any) -> None:
        """At the start it belongs to the system prompt. Later many templates know none: the user's turn has it, in the
        marks in which clients put such words there themselves."""
        if self._turn is None and not self._done:
            self.take_system(where, content)
            return
        text = "\n".join(self._texts(where, content))
        self._turn_of("user").texts.append(f"<system-reminder>\n{text}\n</system-reminder>")

    def _turn_of(self, role: str) -> _Turn:
        if self._turn is None or self._turn.role != role:
            self._end_turn()
            self._turn = _Turn(role)
        return self._turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._done.append(self._turn.message())
        self._turn = None

    def _block(self, where: str, role: str, block: Any) -> None:
        kind = _kind(where, block)
        turn = self._turn_of(role)
        if kind == "text":
            turn.texts.append(_text(f"{where}.text", block.get("text")))
        elif kind == "thinking":
            turn.reasoning.append(_text(f"{where}.thinking", block.get("thinking") or ""))
        elif kind == "tool_use":
            turn.calls.append(self._call(where, block))
        elif kind == "tool_result":
            self._result(where, turn, block)
        elif kind in ("image", "document", "search_result"):
            text = _readable(where, kind, block)
            if text is None:
                raise wrong(where, f"is of type {kind}: this worker reads text alone")
            turn.texts.append(text)
        else:
            self._leave_out(where, kind)

    def _leave_out(self, where: str, kind: str) -> None:
        if kind not in _OF_SERVERS and not kind.endswith("_tool_result"):
            raise wrong(f"{where}.type", f"is {kind[:_MOST_KIND]!r}, which this worker does not know")
        if kind != "redacted_thinking":
            self.left_out[f"content of type {kind[:_MOST_KIND]} is left out: this worker does not know it"] = None

    def _call(self, where: str, block: dict[str, Any]) -> dict[str, Any]:
        identity, name = _text(f"{where}.id", block.get("id")), _text(f"{where}.name", block.get("name"))
        given = {} if block.get("input") is None else block["input"]
        if not isinstance(given, dict):
            raise wrong(f"{where}.input", "must be an object")
        arguments = _text(f"{where}.input", json.dumps(given, ensure_ascii=False))
        function = {"name": self._names.safe(name), "arguments": arguments}
        self._called[identity] = function["name"]
        return {"id": identity, "type": "function", "function": function}

    def _result(self, where: str, turn: _Turn, block: dict[str, Any]) -> None:
        """What the user said before it comes before it."""
        identity = _text(f"{where}.tool_use_id", block.get("tool_use_id"))
        text = self._result_text(f"{where}.content", block.get("content"))
        if block.get("is_error"):
            text = f"Error: {text}" if text else "Error"
        if turn.texts:
            self._end_turn()
        self._turn = None
        self._done.append(Message("tool", text, tool_call_id=identity, name=self._called.get(identity, "")))

    def _result_text(self, where: str, content: Any) -> str:
        if content is None or isinstance(content, str):
            return _text(where, content or "")
        if not isinstance(content, list):
            raise wrong(where, "must be a text or a list of blocks")
        texts = []
        for index, block in enumerate(content):
            kind = _kind(f"{where}[{index}]", block)
            text = _readable(f"{where}[{index}]", kind, block)
            if text is None:
                self.left_out[f"{kind[:_MOST_KIND]} in a tool_result is left out: this worker reads text alone"] = None
                text = f"[{kind[:_MOST_KIND]} left out: the model reads text alone]"
            texts.append(text)
        return "\n".join(texts)

    def _texts(self, where: str, content: Any) -> list[str]:
        if isinstance(content, str):
            return [_text(where, content)]
        if not isinstance(content, list):
            raise wrong(where, "must be a text or a list of text blocks")
        texts = []
        for index, block in enumerate(content):
            if _kind(f"{where}[{index}]", block) != "text":
                raise wrong(f"{where}[{index}]", "must be a text block")
            texts.append(_text(f"{where}[{index}].text", block.get("text")))
        return texts


def _kind(where: str, block: Any) -> str:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise wrong(f"{where}.type" if isinstance(block, dict) else where, "must name the kind of block")
    return kind


def _readable(where: str, kind: str, block: dict[str, Any]) -> str | None:
    """The text of a block that has some, None for one that is no text."""
    if kind == "text":
        return _text(f"{where}.text", block.get("text"))
    if kind == "tool_reference":
        return _text(f"{where}.tool_name", block.get("tool_name") or "")
    source = block.get("source")
    if kind == "search_result":
        return _with_title(block, [str(source or ""), *_inner(block.get("content"))])
    if kind == "document" and isinstance(source, dict):
        if source.get("type") == "text":
            return _with_title(block, [_text(f"{where}.source.data", source.get("data"))])
        inner = source.get("content")
        if source.get("type") == "content":
            return _with_title(block, [inner] if isinstance(inner, str) else _inner(inner))
    return None


def _inner(content: Any) -> list[str]:
    blocks = content if isinstance(content, list) else []
    return [each["text"] for each in blocks if isinstance(each, dict) and isinstance(each.get("text"), str)]


def _with_title(block: dict[str, Any], texts: list[str]) -> str:
    said = [block.get("title"), block.get("context"), *texts]
    text = "\n".join(each for each in said if isinstance(each, str) and each)
    check_text("messages", text)
    return text


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(where, "is missing" if value is None else "must be a string")
    check_text(where, value)
    return value
