"""What a model says as the items of a response: reasoning, a message, calls; each opened, filled and closed by events.

Ids are made of the response's own, so that an answer that goes on on another worker has the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rbee_remote.worker.http.answers.form import Piece
from rbee_remote.worker.http.openai.logprobs import of_chat
from rbee_remote.worker.http.responses.tools import FunctionNames

_PREFIXES = {"reasoning": "rs", "message": "msg", "function_call": "fc"}
#: What the one part of an item is called.
_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}


@dataclass
class _Item:
    """kind: its `type`. called: the name of its function, and of that one's namespace. pieces: of its text, or of its
    arguments."""

    kind: str
    id: str
    index: int
    call_id: str = ""
    called: dict[str, str] = field(default_factory=dict)
    status: str = "in_progress"
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self) -> dict[str, Any]:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}

    def encode(self, *, is_new: bool = False) -> dict[str, Any]:
        said: dict[str, Any] = {"id": self.id, "type": self.kind, "status": self.status}
        if self.kind == "function_call":
            return {**said, "call_id": self.call_id, **self.called, "arguments": self.text}
        content = [] if is_new else [self.part()]
        if self.kind == "reasoning":
            return {**said, "summary": [], "content": content}
        return {**said, "role": "assistant", "content": content}


class ResponseChoice:
    """names: of the functions that are called. logprobs: whether they are told.

    reasoning_tokens: those that gave reasoning, with the marks around it as far as the tokens between are its.
    """

    def __init__(self, names: FunctionNames, *, logprobs: bool) -> None:
        self.reasoning_tokens = 0
        self._names = names
        self._wants_logprobs = logprobs
        self._base = ""
        self._items: list[_Item] = []
        self._open: _Item | None = None
        self._waiting: list[dict[str, Any]] = []
        self._tokens = 0

    def begin(self, response_id: str) -> None:
        self._base = response_id.removeprefix("resp_")

    def opening(self) -> list[Piece]:
        return []

    def feed(self, token: dict[str, Any]) -> list[Piece]:
        text, reasoning, calls = token["text"], token.get("reasoning", ""), token.get("calls", ())
        before, self._tokens = self._tokens, token["tokens"]
        events: list[Piece] = []
        if reasoning:
            self.reasoning_tokens += self._tokens - before
            events += self._say("reasoning", reasoning)
        if self._wants_logprobs and token["logprobs"] is not None and not reasoning and not calls:
            self._waiting.append(of_chat(token["logprobs"]))
        if text:
            events += self._say("message", text)
        for piece in calls:
            events += self._call(piece)
        return events

    def closing(self, finish_reason: str) -> list[Piece]:
        """An answer of nothing is an empty message: clients look for one."""
        events = [] if self._items else self._opened("message")
        return events + self._closed("incomplete" if finish_reason == "length" else "completed")

    def whole(self) -> dict[str, Any]:
        return {"output": self.output()}

    def output(self) -> list[dict[str, Any]]:
        return [item.encode() for item in self._items]

    def _say(self, kind: str, text: str) -> list[Piece]:
        events = [] if self._open is not None and self._open.kind == kind else self._opened(kind)
        item = self._open
        assert item is not None
        item.pieces.append(text)
        delta = self._event(f"response.{_PARTS[kind]}.delta", item, content_index=0, delta=text)
        if kind == "message":
            delta["logprobs"], self._waiting = self._waiting, []
            item.logprobs += delta["logprobs"]
        return [*events, delta]

    def _call(self, piece: dict[str, Any]) -> list[Piece]:
        events: list[Piece] = []
        if piece["name"]:
            events = self._opened("function_call", piece["id"], self._names.told(piece["name"]))
        item = self._open
        if item is None or item.kind != "function_call" or not piece["arguments"]:
            return events
        item.pieces.append(piece["arguments"])
        return [*events, self._event("response.function_call_arguments.delta", item, delta=piece["arguments"])]

    def _opened(self, kind: str, call_id: str = "", called: dict[str, str] | None = None) -> list[Piece]:
        events = self._closed("completed")
        index = len(self._items)
        item = _Item(kind, f"{_PREFIXES[kind]}_{self._base}{index}", index, call_id, called or {})
        self._items.append(item)
        self._open = item
        added = {"type": "response.output_item.added", "output_index": index, "item": item.encode(is_new=True)}
        if kind == "function_call":
            return [*events, added]
        return [*events, added, self._event("response.content_part.added", item, content_index=0, part=item.part())]

    def _closed(self, status: str) -> list[Piece]:
        item, self._open = self._open, None
        if item is None:
            return []
        item.status = status
        if item.kind == "message":
            item.logprobs += self._waiting
        self._waiting = []
        done = {"type": "response.output_item.done", "output_index": item.index, "item": item.encode()}
        if item.kind == "function_call":
            told = {"name": item.called["name"], "arguments": item.text}
            return [self._event("response.function_call_arguments.done", item, **told), done]
        more = {"logprobs": item.logprobs} if item.kind == "message" else {}
        return [
            self._event(f"response.{_PARTS[item.kind]}.done", item, content_index=0, text=item.text, **more),
            self._event("response.content_part.done", item, content_index=0, part=item.part()),
            done,
        ]

    def _event(self, kind: str, item: _Item, **more: Any) -> Piece:
        return {"type": kind, "item_id": item.id, "output_index": item.index, **more}
