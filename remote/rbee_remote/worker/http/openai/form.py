"""Answers as chat completions and completions have them: chunks with `choices`, then usage, then `[DONE]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbee_remote.protocol import RemoteError
from rbee_remote.serving import sse
from rbee_remote.worker.http.answers.form import Part, Piece
from rbee_remote.worker.http.answers.summary import Summary, Taken
from rbee_remote.worker.http.answers.tracking import State
from rbee_remote.worker.http.openai import errors

DONE = "data: [DONE]\n\n"


class ChunkForm:
    """kind, chunk_kind: the `object` of the answer, and of a stream's chunks."""

    def __init__(self, kind: str, chunk_kind: str, *, include_usage: bool) -> None:
        self._kind = kind
        self._chunk_kind = chunk_kind
        self._include_usage = include_usage
        self._head: dict[str, Any] = {}
        self._chunk_head: dict[str, Any] = {}

    def begin(self, state: State) -> None:
        self._head = {
            "id": state.id,
            "created": state.created,
            "model": state.model,
            "system_fingerprint": state.fingerprint,
        }
        usage = {"usage": None} if self._include_usage else {}
        self._chunk_head = {**self._head, "object": self._chunk_kind, **usage}

    def opening(self, part: Part, warnings: Sequence[str], _: Summary) -> list[Piece]:
        warned = {"warnings": list(warnings)} if warnings else {}
        return [{"choices": [each], **warned} for each in part.choice.opening()]

    def token(self, part: Part, token: dict[str, Any]) -> list[Piece]:
        return [{"choices": [each]} for each in part.choice.feed(token)]

    def closing(self, part: Part, done: Mapping[str, Any], taken: Taken) -> list[Piece]:
        *others, last = part.choice.closing(done["finish_reason"])
        return [*({"choices": [each]} for each in others), {"choices": [last], "timings": taken.encode()}]

    def line(self, piece: Piece) -> str:
        return sse.data({**self._chunk_head, **piece})

    def ending(self, summary: Summary) -> list[str]:
        return [*([self.line({"choices": [], "usage": usage_of(summary)})] if self._include_usage else []), DONE]

    def error(self, error: RemoteError) -> list[str]:
        return [sse.data(errors.body(error))]

    def whole(self, parts: Sequence[Part], summary: Summary) -> dict[str, Any]:
        return {
            **self._head,
            "object": self._kind,
            "choices": [part.choice.whole() for part in parts],
            "usage": usage_of(summary),
            "timings": summary.timings(),
            **({"warnings": summary.warnings} if summary.warnings else {}),
        }


def usage_of(summary: Summary) -> dict[str, Any]:
    tokens = summary.tokens
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }
