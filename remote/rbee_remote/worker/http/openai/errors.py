"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` with the status its clients act on.

JSON is written in ASCII: a message may quote what came in, and half a surrogate pair has no UTF-8.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.serving.errors import OPENAI, headers_of, status_of

#: OpenAI's code for a prompt that the context does not hold: clients shorten it, and try again.
TOO_LONG = "context_length_exceeded"

#: The protocol's names for fields that have another here.
_FIELDS = {
    "chat.template": "chat_template",
    "chat.template_kwargs": "chat_template_kwargs",
    "chat.continue_final": "continue_final_message",
}


def wrong(field: str, what: str) -> RemoteError:
    """A request that cannot be served because of `field`, which is empty for the body as a whole."""
    return RemoteError(ErrorCode.USAGE, f"{field}: {what}" if field else what, details={"field": field or None})


def body(error: RemoteError) -> dict[str, Any]:
    """Without the hint, which is for the keyboard: it speaks of commands and their options."""
    kind = "invalid_request_error" if status_of(error, OPENAI) < 500 else "server_error"
    message, field = _named(error.message, error.details.get("field"))
    told = {"message": message, "type": kind, "param": field, "code": _code(error)}
    if "prompt_tokens" in error.details:  # llama-server's names
        told |= {"n_prompt_tokens": error.details["prompt_tokens"], "n_ctx": error.details["ctx"]}
    return {"error": told}


def response(error: RemoteError, status: int | None = None) -> Response:
    """status: where it is not the one of the error's code."""
    status = status or status_of(error, OPENAI)
    content = json.dumps(body(error))
    return Response(content, status_code=status, headers=headers_of(error, status), media_type="application/json")


def _named(message: str, field: Any) -> tuple[str, Any]:
    """An error's words and its field, with the name that the field has in a request here."""
    said = field if isinstance(field, str) else ""
    own = next((own for own in _FIELDS if f"{said}.".startswith(f"{own}.")), "")
    if not own:
        return message, field
    name = _FIELDS[own] + field.removeprefix(own)
    return (name + message.removeprefix(field) if message.startswith(field) else message), name


def _code(error: RemoteError) -> str | None:
    """OpenAI's own code where it has one that clients look for, else rbee's."""
    if error.code is ErrorCode.MODEL_NOT_FOUND:
        return "model_not_found"
    if error.code is ErrorCode.USAGE:
        return TOO_LONG if "prompt_tokens" in error.details else None
    return str(error.code.value)
