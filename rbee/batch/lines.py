"""One line of the input, and what it asks for. Pure.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}    as OpenAI's batches have it
    {"prompt": "Why is the sky blue?"}                                                  asked as a chat
    {"messages": […]}                                                                   likewise
    {"text": "…"}, or a row of a CSV file                                               with a template

A plain line may have a custom_id, and fields of a request such as max_tokens; its others are for templates alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rbee.batch.template import Template
from rbee_remote.protocol import ProtocolError, parse_json

CHAT = "/v1/chat/completions"
#: Of OpenAI's batches, and what workers serve beside.
PATHS = (CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/v1/responses")
#: Characters of a custom_id.
_LONGEST_ID = 512
#: Fields of a request that a plain line may have.
_REQUEST = frozenset(
    {"model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"}
    | {"repeat_penalty", "frequency_penalty", "presence_penalty", "response_format", "tools", "tool_choice"}
    | {"logprobs", "top_logprobs", "n"}
)


class LineError(ValueError):
    """A line that asks for nothing. custom_id: where it has one that can be read."""

    def __init__(self, why: str, custom_id: str | None = None) -> None:
        super().__init__(why)
        self.custom_id = custom_id


@dataclass(frozen=True, slots=True)
class Ask:
    """number: of the line, or of the row of a CSV file, from 1."""

    number: int
    custom_id: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Raw:
    """A line as it was read. content: bytes of JSON, the fields of a row, or why it is neither."""

    number: int
    content: bytes | Mapping[str, Any] | LineError


def read_line(raw: Raw, template: Template | None) -> Ask:
    """Raises LineError."""
    if isinstance(raw.content, LineError):
        raise raw.content
    fields = _parsed(raw.content) if isinstance(raw.content, bytes) else raw.content
    custom_id = _custom_id(fields.get("custom_id"), raw.number)
    try:
        if template is not None:
            return Ask(raw.number, custom_id, CHAT, _of_prompt(template.fill(fields), fields))
        if "url" in fields or "body" in fields:
            return Ask(raw.number, custom_id, _path(fields), _body(fields))
        return Ask(raw.number, custom_id, CHAT, _plain(fields))
    except ValueError as error:
        raise LineError(str(error), custom_id) from error


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        fields = parse_json(content, unique=True)
    except ProtocolError as error:
        raise LineError(f"it is {error}") from error
    if not isinstance(fields, dict):
        raise LineError("it is no JSON object")
    return fields


def _custom_id(said: Any, number: int) -> str:
    if said is None or said == "":
        return str(number)
    if isinstance(said, bool) or not isinstance(said, str | int) or len(str(said)) > _LONGEST_ID:
        raise LineError(f"custom_id: expected a text of at most {_LONGEST_ID} characters")
    return str(said)


def _path(fields: Mapping[str, Any]) -> str:
    method, url = fields.get("method", "POST"), fields.get("url", CHAT)
    if not isinstance(method, str) or method.upper() != "POST":
        raise ValueError(f"method: only POST can be asked for, not {method!r:.40}")
    path = url if not isinstance(url, str) or url.startswith("/v1/") else f"/v1{url}"
    if path not in PATHS:
        raise ValueError(f"url: expected one of {', '.join(PATHS)}, got {url!r:.80}")
    return str(path)


def _body(fields: Mapping[str, Any]) -> dict[str, Any]:
    body = fields.get("body")
    if not isinstance(body, dict):
        raise LineError("body: expected a JSON object")
    return {name: value for name, value in body.items() if name not in ("stream", "stream_options")}


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if isinstance(messages, list):
        return {"messages": messages, **_request(fields)}
    if isinstance(prompt, str):
        return _of_prompt(prompt, fields)
    if "prompt" in fields or "messages" in fields:
        raise ValueError("prompt: expected a text" if "prompt" in fields else "messages: expected a list")
    raise ValueError("it has neither url and body nor prompt nor messages; for other fields there is --template")


def _of_prompt(prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    if not prompt.strip():
        raise ValueError("the prompt is empty")
    system = fields.get("system")
    before = [{"role": "system", "content": system}] if isinstance(system, str) and system else []
    return {"messages": [*before, {"role": "user", "content": prompt}], **_request(fields)}


def _request(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What of a plain line is for the request; of a row, where all is text, nothing is."""
    return {name: value for name, value in fields.items() if name in _REQUEST and not isinstance(fields, Row)}


class Row(dict[str, str]):
    """A row of a CSV file."""
