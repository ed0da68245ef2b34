"""What has come of one answer so far, and what is left of it when nothing more comes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rbee.base.events import Notice, ToolCall
from rbee_remote.protocol import Done, ProtocolError, TokenEvent, Usage, parse_json


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. first_token_s: since the request was sent; tokens_per_s: from the first token on."""

    text: str
    finish_reason: str
    usage: Usage
    first_token_s: float
    tokens_per_s: float | None


@dataclass(slots=True)
class _Call:
    """A call as it comes. pieces: of its arguments."""

    name: str
    id: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)

    def finished(self, *, is_cut: bool = False) -> ToolCall | Notice:
        """The call, or what is said of one that was cut off, or whose arguments are no JSON object. is_cut: the answer
        ended within it, so that arguments which are missing were not left out."""
        text = self.arguments
        try:
            arguments = parse_json(text) if text.strip() or is_cut else {}
        except ProtocolError:
            arguments = None
        if not isinstance(arguments, dict):
            return Notice(f"the call of {self.name} is not whole: {text or 'it has no arguments yet'}")
        return ToolCall(self.name, arguments, self.id)


@dataclass(slots=True)
class PartialAnswer:
    """path: where its text goes if nothing more comes. begins_with: text of the answer that the request had already.

    sent_at: when the request was sent last, on the monotonic clock. max_tokens: None until the worker has begun.
    pieces: of its text, once something of the answer came. is_saved: False where no file is made.
    """

    path: Path
    begins_with: str = ""
    is_saved: bool = True
    sent_at: float = 0.0
    max_tokens: int | None = None
    tokens: int = 0
    pieces: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[_Call] = field(default_factory=list)
    is_empty: bool = True
    first_at: float | None = None
    first_tokens: int = 0
    _told: int = 0

    @classmethod
    def of(cls, folder: Path, request_id: str, begins_with: str = "", *, is_saved: bool = True) -> PartialAnswer:
        """The file's name says when it was."""
        stamp = datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
        return cls(folder / f"answer-{stamp}-{request_id[:8]}.txt", begins_with, is_saved)

    @property
    def progress(self) -> str:
        return f"{self.tokens} of {self.max_tokens} tokens"

    def begin(self) -> None:
        """Something of the answer is here, which from now on counts as shown."""
        self.is_empty = False
        self.pieces.append(self.begins_with)

    def add(self, event: TokenEvent) -> None:
        self.tokens = event.tokens
        self.pieces.append(event.text)
        if event.reasoning:
            self.reasoning.append(event.reasoning)
        for piece in event.calls:
            if piece.name:
                self.calls.append(_Call(piece.name, piece.id))
            self.calls[piece.index].pieces.append(piece.arguments)
        if self.first_at is None:
            self.first_at, self.first_tokens = time.monotonic(), event.tokens

    def finished_calls(self, reason: str = "") -> list[ToolCall | Notice]:
        """Those that were not returned before. reason: for which the answer ended, so that the last one has as well."""
        end = len(self.calls) if reason else len(self.calls) - 1
        finished = [
            call.finished(is_cut=reason not in ("", "tool_calls") and call is self.calls[-1])
            for call in self.calls[self._told : end]
        ]
        self._told = max(self._told, end)
        return finished

    def whole(self, done: Done) -> Answer:
        now = time.monotonic()
        first_at = self.first_at or now
        further = self.tokens - self.first_tokens
        return Answer(
            text="".join(self.pieces),
            finish_reason=done.finish_reason,
            usage=done.usage,
            first_token_s=first_at - self.sent_at,
            tokens_per_s=further / (now - first_at) if further > 0 and now > first_at else None,
        )

    def save(self) -> dict[str, str]:
        """How far it came and where its text went, as details of an error; no text, no file.

        Calls follow the text, one JSON a line; reasoning has a file of its own beside it.
        """
        if self.max_tokens is None:
            return {}
        if not self.is_saved:
            return {"generated": self.progress}
        calls = [json.dumps({"name": call.name, "arguments": call.arguments}) for call in self.calls]
        texts = ["".join(self.pieces), *calls]
        details = {"generated": self.progress}
        for name, path, text in (
            ("saved", self.path, "\n".join(text for text in texts if text)),
            ("reasoning saved", self.path.with_suffix(".reasoning.txt"), "".join(self.reasoning)),
        ):
            try:
                if text:
                    write_private(path, text)
                    details[name] = str(path)
            except OSError as error:
                return {**details, f"not {name}": str(error)}
        return details


def write_private(path: Path, text: str) -> None:
    """Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
