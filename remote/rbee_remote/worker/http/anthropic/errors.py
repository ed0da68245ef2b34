"""Errors in Anthropic's form: `{"type": "error", "error": {"type", "message"}}`.

JSON is written in ASCII: a message may quote what came in, and half a surrogate pair has no UTF-8.
"""

from __future__ import annotations

import json
import re
from typing import Any

from starlette.responses import Response

from rbee_remote.protocol import RemoteError
from rbee_remote.serving.errors import OPENAI, headers_of, shown, status_of

#: What has no type here is invalid_request_error below 500, api_error from there on. A gateway has the same.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
#: The protocol's names for fields that have another here.
_FIELDS = (
    (re.compile(r"tools\[(\d+)\]\.function\.parameters"), r"tools[\1].input_schema"),
    (re.compile(r"tools\[(\d+)\]\.function\b"), r"tools[\1]"),
    (re.compile(r"^stop\b"), "stop_sequences"),
    (re.compile(r"\bresponse_format\b"), "output_config.format"),
    (re.compile(r"\bchat\.template_kwargs\b"), "chat_template_kwargs"),
    (re.compile(r"^think_budget\b"), "thinking.budget_tokens"),
)


def body(error: RemoteError, status: int | None = None) -> dict[str, Any]:
    """Without the hint, which is for the keyboard. status: where it is not the one of the error's code."""
    status = status or status_of(error, OPENAI)
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": _message(error)}}


def response(error: RemoteError, status: int | None = None) -> Response:
    status = status or status_of(error, OPENAI)
    content = json.dumps(body(error, status))
    return Response(content, status_code=status, headers=headers_of(error, status), media_type="application/json")


def _message(error: RemoteError) -> str:
    """A prompt that is too long is told in Anthropic's own words: clients look for them, and shorten it."""
    details = error.details
    if "prompt_tokens" in details and "ctx" in details:
        return f"prompt is too long: {details['prompt_tokens']} tokens > {details['ctx']} maximum"
    message = shown(error).message
    for own, name in _FIELDS:
        message = own.sub(name, message)
    return message
