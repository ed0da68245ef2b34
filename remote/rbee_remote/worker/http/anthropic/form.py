"""The `message` object, and the events of a stream around those of its content blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbee_remote.protocol import RemoteError
from rbee_remote.serving import sse
from rbee_remote.worker.http.answers.form import Part, Piece
from rbee_remote.worker.http.answers.summary import Summary, Taken
from rbee_remote.worker.http.answers.tracking import State
from rbee_remote.worker.http.anthropic import errors

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessageForm:
    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._stop: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}

    def begin(self, state: State) -> None:
        self._head = {"id": state.id, "type": "message", "role": "assistant", "model": state.model}

    def opening(self, part: Part, warnings: Sequence[str], summary: Summary) -> list[Piece]:
        message = {**self._head, "content": [], **self._stop, "usage": usage_of(summary), **_warned(warnings)}
        return [{"type": "message_start", "message": message}, {"type": "ping"}, *part.choice.opening()]

    def token(self, part: Part, token: dict[str, Any]) -> list[Piece]:
        return part.choice.feed(token)

    def closing(self, part: Part, done: Mapping[str, Any], _: Taken) -> list[Piece]:
        reason, stop = done["finish_reason"], done.get("stop") or None
        self._stop = {
            "stop_reason": "stop_sequence" if stop else _REASONS.get(reason, "end_turn"),
            "stop_sequence": stop,
        }
        return part.choice.closing(reason)

    def line(self, piece: Piece) -> str:
        return sse.event(piece["type"], piece)

    def ending(self, summary: Summary) -> list[str]:
        delta = {"type": "message_delta", "delta": self._stop, "usage": usage_of(summary)}
        return [self.line(delta), self.line({"type": "message_stop"})]

    def error(self, error: RemoteError) -> list[str]:
        return [sse.event("error", errors.body(error))]

    def whole(self, parts: Sequence[Part], summary: Summary) -> dict[str, Any]:
        (part,) = parts
        return {
            **self._head,
            **part.choice.whole(),
            **self._stop,
            "usage": usage_of(summary),
            **_warned(summary.warnings),
        }


def usage_of(summary: Summary) -> dict[str, int]:
    """Anthropic's input_tokens are those that were computed now. Nothing is kept for a price."""
    tokens = summary.tokens
    return {
        "input_tokens": tokens.prompt - tokens.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached,
        "output_tokens": tokens.completion,
    }


def _warned(warnings: Sequence[str]) -> dict[str, list[str]]:
    return {"warnings": list(warnings)} if warnings else {}
