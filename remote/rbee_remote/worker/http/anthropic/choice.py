"""What a model says as content blocks: thinking, text, calls of tools; each opened, filled and closed by events.

content_block_start  content_block_delta…  content_block_stop
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from rbee_remote.worker.http.answers.form import Piece
from rbee_remote.worker.http.openai.tools import ToolNames

#: The type of what fills a block, and the field of it.
_DELTAS = {
    "thinking": ("thinking_delta", "thinking"),
    "text": ("text_delta", "text"),
    "tool_use": ("input_json_delta", "partial_json"),
}


@dataclass
class _Block:
    """kind: its `type`. id and name: of a call. pieces: of its text, or of its input."""

    kind: str
    index: int
    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def empty(self) -> dict[str, Any]:
        if self.kind == "tool_use":
            return {"type": "tool_use", "id": self.id, "name": self.name, "input": {}}
        if self.kind == "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        return {"type": "text", "text": ""}

    def encode(self, *, shows_thinking: bool) -> dict[str, Any]:
        block = self.empty()
        if self.kind == "tool_use":
            block["input"] = _input(self.text)
        elif self.kind == "thinking":
            block |= {"thinking": self.text if shows_thinking else "", "signature": _signature(self.text)}
        else:
            block["text"] = self.text
        return block


class MessageChoice:
    """names: of the tools that are called. shows_thinking: False where the client wants its signature alone."""

    def __init__(self, names: ToolNames, *, shows_thinking: bool = True) -> None:
        self._names = names
        self._shows_thinking = shows_thinking
        self._blocks: list[_Block] = []
        self._open: _Block | None = None

    def opening(self) -> list[Piece]:
        return []

    def feed(self, token: dict[str, Any]) -> list[Piece]:
        events: list[Piece] = []
        if reasoning := token.get("reasoning", ""):
            events += self._say("thinking", reasoning)
        if text := token["text"]:
            events += self._say("text", text)
        for piece in token.get("calls", ()):
            events += self._call(piece)
        return events

    def closing(self, finish_reason: str) -> list[Piece]:  # noqa: ARG002 - it is the form's to tell
        """An answer of nothing is an empty text: clients look for one."""
        events = [] if self._blocks else self._opened("text")
        return events + self._closed()

    def whole(self) -> dict[str, Any]:
        return {"content": [block.encode(shows_thinking=self._shows_thinking) for block in self._blocks]}

    def _say(self, kind: str, text: str) -> list[Piece]:
        events = [] if self._open is not None and self._open.kind == kind else self._opened(kind)
        return events + self._filled(text)

    def _call(self, piece: dict[str, Any]) -> list[Piece]:
        events: list[Piece] = []
        if piece["name"]:
            events = self._opened("tool_use", f"toolu_{piece['id']}", self._names.given(piece["name"]))
        if self._open is not None and self._open.kind == "tool_use" and piece["arguments"]:
            events += self._filled(piece["arguments"])
        return events

    def _filled(self, text: str) -> list[Piece]:
        block = self._open
        assert block is not None
        block.pieces.append(text)
        if block.kind == "thinking" and not self._shows_thinking:
            return []
        kind, name = _DELTAS[block.kind]
        return [_delta(block, {"type": kind, name: text})]

    def _opened(self, kind: str, call_id: str = "", name: str = "") -> list[Piece]:
        events = self._closed()
        block = self._open = _Block(kind, len(self._blocks), call_id, name)
        self._blocks.append(block)
        return [*events, {"type": "content_block_start", "index": block.index, "content_block": block.empty()}]

    def _closed(self) -> list[Piece]:
        block, self._open = self._open, None
        if block is None:
            return []
        signed = []
        if block.kind == "thinking":
            signed = [_delta(block, {"type": "signature_delta", "signature": _signature(block.text)})]
        return [*signed, {"type": "content_block_stop", "index": block.index}]


def _delta(block: _Block, delta: dict[str, Any]) -> Piece:
    return {"type": "content_block_delta", "index": block.index, "delta": delta}


def _signature(thinking: str) -> str:
    """Of no meaning but that it is there: clients leave out thinking that has none when they send it back. What they
    send back is believed."""
    digest = hashlib.blake2b(thinking.encode("utf-8", "replace"), digest_size=24).digest()
    return base64.b64encode(digest).decode()


def _input(text: str) -> dict[str, Any]:
    """Of a call; one that was cut has none: what is there of it is no object."""
    try:
        given = json.loads(text or "{}")
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
