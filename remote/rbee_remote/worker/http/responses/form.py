"""The `response` object, and the events of a stream around those of its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError
from rbee_remote.serving import sse
from rbee_remote.worker.http.answers.form import Part, Piece
from rbee_remote.worker.http.answers.summary import Summary, Taken
from rbee_remote.worker.http.answers.tracking import State
from rbee_remote.worker.http.openai import errors
from rbee_remote.worker.http.responses.choice import ResponseChoice
from rbee_remote.worker.http.responses.tools import served

#: Fields that are told as they came, and what they are where they did not.
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "prompt_cache_key": None,
    "safety_identifier": None,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "truncation": "disabled",
    "user": None,
}
#: What is said of a response that failed: OpenAI has few words for it.
_FAILED = {ErrorCode.ALL_SLOTS_BUSY: "rate_limit_exceeded", ErrorCode.USAGE: "invalid_prompt"}


class ResponseForm:
    """data: the body as it came; request: what was made of it."""

    def __init__(self, choice: ResponseChoice, data: dict[str, Any], request: GenerateRequest) -> None:
        self._choice = choice
        self._asked = _echo(data, request)
        self._head: dict[str, Any] = {}
        self._sequence = 0
        self._incomplete = False
        self._timings: dict[str, Any] = {}

    def begin(self, state: State) -> None:
        self._head = {"id": state.id, "object": "response", "created_at": state.created, "model": state.model}
        self._choice.begin(state.id)

    def opening(self, part: Part, warnings: Sequence[str], _: Summary) -> list[Piece]:
        told = {"response": self._response("in_progress", None, warnings)}
        return [{"type": "response.created", **told}, {"type": "response.in_progress", **told}, *part.choice.opening()]

    def token(self, part: Part, token: dict[str, Any]) -> list[Piece]:
        return part.choice.feed(token)

    def closing(self, part: Part, done: Mapping[str, Any], _: Taken) -> list[Piece]:
        self._incomplete = done["finish_reason"] == "length"
        return part.choice.closing(done["finish_reason"])

    def line(self, piece: Piece) -> str:
        numbered = {**piece, "sequence_number": self._sequence}
        self._sequence += 1
        return sse.event(piece["type"], numbered)

    def ending(self, summary: Summary) -> list[str]:
        response = self.whole((), summary)
        return [self.line({"type": f"response.{response['status']}", "response": response})]

    def error(self, error: RemoteError) -> list[str]:
        """The documented event, whose error stands in it once more as it does everywhere else: OpenAI's library takes a
        stream as failed by that alone. Others wait for the response that failed."""
        told = errors.body(error)["error"]
        said = {name: told[name] for name in ("code", "message", "param")}
        failed = self._response("failed", None)
        code = told["code"] if told["code"] == errors.TOO_LONG else _FAILED.get(error.code, "server_error")
        failed["error"] = {"code": code, "message": told["message"]}
        return [
            self.line({"type": "error", **said, "error": told}),
            self.line({"type": "response.failed", "response": failed}),
        ]

    def whole(self, _: Sequence[Part], summary: Summary) -> dict[str, Any]:
        status = "incomplete" if self._incomplete else "completed"
        response = self._response(status, self._usage(summary), summary.warnings)
        return {**response, "timings": summary.timings()}

    def _response(self, status: str, usage: dict[str, Any] | None, warnings: Sequence[str] = ()) -> dict[str, Any]:
        return {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [] if status == "in_progress" else self._choice.output(),
            "usage": usage,
            **self._asked,
            **({"warnings": list(warnings)} if warnings else {}),
        }

    def _usage(self, summary: Summary) -> dict[str, Any]:
        tokens = summary.tokens
        return {
            "input_tokens": tokens.prompt,
            "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
            "output_tokens": tokens.completion,
            "output_tokens_details": {"reasoning_tokens": self._choice.reasoning_tokens},
            "total_tokens": tokens.prompt + tokens.completion,
        }


def _echo(data: dict[str, Any], request: GenerateRequest) -> dict[str, Any]:
    """What a response says of its request. Nothing is kept, whatever was asked."""
    said = {name: default if data.get(name) is None else data[name] for name, default in _ECHOED.items()}
    text, reasoning = data.get("text") or {}, data.get("reasoning") or {}
    parallel = data.get("parallel_tool_calls")
    return {
        **said,
        "background": False,
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": request.sampling.temperature,
        "tools": served(data.get("tools") or []),
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "top_p": request.sampling.top_p,
    }
