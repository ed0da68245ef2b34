"""Errors in the form of the API that the caller speaks: OpenAI's, Anthropic's, and in streams that of Responses.

Without hints for the keyboard, which speak of commands, and without what addresses keep to themselves.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rbee.base.errors import RbeeError, UsageError
from rbee_remote.protocol import ErrorCode, ProtocolError, RemoteError, parse_json
from rbee_remote.serving.errors import shown


class Form(enum.Enum):
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    RESPONSES = "responses"


#: OpenAI's clients try 408, 409, 429 and 5xx again. What has no status here is 500.
STATUSES: Mapping[ErrorCode, int] = {
    ErrorCode.USAGE: 400,
    ErrorCode.INVALID_API_KEY: 401,
    ErrorCode.MODEL_NOT_FOUND: 404,
    ErrorCode.MODEL_INVALID: 422,
    ErrorCode.BACKEND_UNAVAILABLE: 422,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.REQUEST_CANCELED: 499,
    ErrorCode.DOWNLOAD_FAILED: 502,
    ErrorCode.INVALID_RESPONSE: 502,
    ErrorCode.DEADLINE_EXCEEDED: 504,
    **dict.fromkeys(
        (
            ErrorCode.ALL_SLOTS_BUSY,
            ErrorCode.NODE_BUSY,
            ErrorCode.IN_USE,
            ErrorCode.WORKER_GONE,
            ErrorCode.WORKER_CRASHED,
            ErrorCode.LOADING_TIMEOUT,
            ErrorCode.CONNECTION_TIMEOUT,
            ErrorCode.CONNECTION_LOST,
            ErrorCode.AUTH_FAILED,
            ErrorCode.CONFIG_INVALID,
            ErrorCode.HOST_KEY_UNKNOWN,
            ErrorCode.HOST_KEY_MISMATCH,
            ErrorCode.RAM_EXHAUSTED,
            ErrorCode.VRAM_EXHAUSTED,
            ErrorCode.DISK_FULL,
        ),
        503,
    ),
}
_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
#: Seconds after which to come again, where the error does not say.
_RETRY_AFTER_S = 1
_MOST_RETRY_AFTER_S = 3600


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error. code: rbee's, for the record. param: the field that is wrong, "" for none."""

    status: int
    code: str
    message: str
    param: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedStatusError(Exception):
    """Ends a request with a status that no error code has."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def recorded(status: int, code: str) -> str:
    """The code of ours under which a worker's error is recorded, which may have words of another API."""
    if code in ErrorCode.__members__:
        return code
    return str((ErrorCode.USAGE if 400 <= status < 500 else ErrorCode.INTERNAL).value)


def form_of(path: str) -> Form:
    words = [word for word in path.split("/") if word not in ("", "v1")]
    if words[:1] == ["messages"]:
        return Form.ANTHROPIC
    return Form.RESPONSES if words[:1] == ["responses"] else Form.OPENAI


def wrong(field_name: str, what: str) -> UsageError:
    """A request that cannot be served because of a field, "" for the body as a whole."""
    return UsageError(f"{field_name}: {what}" if field_name else what, details={"field": field_name})


def refusal_of(error: RbeeError | RemoteError) -> Refusal:
    status = STATUSES.get(error.code, 500)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(_retry_after(error.details.get("retry_after_s")))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    message = error.message
    if error.code is ErrorCode.MODEL_NOT_FOUND and error.hint and "`" not in error.hint:
        message += f"; {error.hint}"  # the nearest names, which help whoever asked
    told = shown(RemoteError(error.code, message))
    param = "model" if "able" in error.details else error.details.get("field")
    return Refusal(status, error.code.value, told.message, param if isinstance(param, str) else "", headers)


def _retry_after(said: Any) -> int:
    if not isinstance(said, (int, float)) or not math.isfinite(said):
        return _RETRY_AFTER_S
    return max(1, min(_MOST_RETRY_AFTER_S, math.ceil(said)))


def body_of(refusal: Refusal, form: Form) -> bytes:
    """JSON in ASCII: a message may quote what came in, and half a surrogate pair has no UTF-8."""
    if form is Form.ANTHROPIC:
        return _json({"type": "error", "error": {"type": _anthropic_type(refusal), "message": refusal.message}})
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    error = {"message": refusal.message, "type": kind, "param": refusal.param or None, "code": _openai_code(refusal)}
    return _json({"error": error})


def event_of(refusal: Refusal, form: Form, lines: int = 0) -> bytes:
    """The same as an event of a stream that has begun. lines: data lines that went before it, which Responses count.

    Its error stands beside the documented fields too: OpenAI's library takes a stream as failed by that alone.
    """
    if form is Form.RESPONSES:
        error = {"code": refusal.code, "message": refusal.message, "param": refusal.param or None}
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        told = {"type": "error", **error, "sequence_number": lines, "error": {"type": kind, **error}}
        return b"event: error\ndata: %b\n\n" % _json(told)
    named = b"event: error\n" if form is Form.ANTHROPIC else b""
    return b"%bdata: %b\n\n" % (named, body_of(refusal, form))


def refusal_in(status: int, body: bytes, retry_after: str | None = None) -> Refusal:
    """A worker's refusal, whatever form it has: rbee's own, OpenAI's or Anthropic's."""
    try:
        said = parse_json(body)
    except ProtocolError:
        said = None
    error = said.get("error") if isinstance(said, dict) else None
    error = error if isinstance(error, dict) else {}
    message, code, param = error.get("message"), error.get("code") or error.get("type"), error.get("param")
    headers = {"Retry-After": retry_after} if retry_after and retry_after.isdecimal() else {}
    return Refusal(
        status,
        code if isinstance(code, str) else "",
        message if isinstance(message, str) else f"the worker answered with status {status}",
        param if isinstance(param, str) else "",
        headers,
    )


def in_form(body: bytes, form: Form) -> bool:
    """Whether a worker's refusal can be passed on as it is. rbee's own form has a hint, which is for the keyboard."""
    try:
        said = parse_json(body)
    except ProtocolError:
        return False
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict) or "hint" in error:
        return False
    return bool(said.get("type") == "error") == (form is Form.ANTHROPIC)


def _anthropic_type(refusal: Refusal) -> str:
    known = _ANTHROPIC.get(refusal.status)
    return known or ("invalid_request_error" if refusal.status < 500 else "api_error")


def _openai_code(refusal: Refusal) -> str | None:
    """OpenAI's own code where it has one that clients look for, else rbee's."""
    own = {
        ErrorCode.USAGE.value: None,
        ErrorCode.MODEL_NOT_FOUND.value: "model_not_found",
        ErrorCode.INVALID_API_KEY.value: "invalid_api_key",
        ErrorCode.RATE_LIMITED.value: "rate_limit_exceeded",
    }
    return own.get(refusal.code, refusal.code or None)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")
