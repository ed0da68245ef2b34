"""Chat completions: a body becomes a request for each choice, and tokens become messages."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol import GenerateRequest, ToolOptions
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.answer import Job, Part, part_ids
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.logprobs import of_chat
from rbee_remote.worker.http.openai.messages import read_messages
from rbee_remote.worker.http.openai.tool_calls import CallReader
from rbee_remote.worker.http.openai.tools import ToolUse, tool_use

MOST_TOP_LOGPROBS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class ChatBody(fields.Body):
    messages: tuple[dict[str, Any], ...] = ()
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: dict[str, Any] = dataclasses.field(default_factory=dict)
    tools: tuple[Any, ...] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None


def read(data: Any, most: int = fields.MOST_CHOICES) -> Job:
    """most: choices that the worker has room for. Raises RemoteError USAGE naming the field."""
    body = fields.read(ChatBody, data)
    fields.check_choices(body, most)
    for name in ("functions", "function_call"):
        if data.get(name) is not None:
            raise wrong(name, "is not served; use tools and tool_choice")
    use = tool_use(list(body.tools), body.tool_choice, body.parallel_tool_calls)
    request = _request(body, data, use)
    ids = part_ids(body.n)
    parts = tuple(
        Part(
            fields.for_choice(request, request_id, index),
            ChatChoice(index, body.logprobs, use),
            counts_prompt=index == 0,
        )
        for index, request_id in enumerate(ids)
    )
    return Job(
        id=f"chatcmpl-{ids[0]}",
        kind="chat.completion",
        chunk_kind="chat.completion.chunk",
        model=body.model,
        parts=parts,
        stream=body.stream,
        include_usage=fields.include_usage(body),
    )


def _request(body: ChatBody, data: dict[str, Any], use: ToolUse | None) -> GenerateRequest:
    limit = fields.token_limit("max_completion_tokens", body.max_completion_tokens)
    return GenerateRequest(
        request_id="",
        messages=read_messages(body.messages),
        max_tokens=limit or fields.token_limit("max_tokens", body.max_tokens),
        sampling=fields.sampling(data, logprobs=_logprobs(body), **_shape(body, data, use)),
        stop=fields.stops(body.stop),
        tools=ToolOptions(use.tools) if use else ToolOptions(),
    )


def _logprobs(body: ChatBody) -> int | None:
    if not body.logprobs:
        if body.top_logprobs:
            raise wrong("top_logprobs", "needs logprobs to be true")
        return None
    top = body.top_logprobs or 0
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise wrong("top_logprobs", f"must be from 0 to {MOST_TOP_LOGPROBS}, got {top}")
    return top


def _shape(body: ChatBody, data: dict[str, Any], use: ToolUse | None) -> dict[str, Any]:
    """What the answer has to look like, as fields of `Sampling`: a forced call, or the response's format."""
    schema = _response_schema(body.response_format)
    own = next((name for name in ("json_schema", "grammar") if data.get(name)), None)
    if schema is not None and own:
        raise wrong("response_format", f"cannot be combined with {own}")
    if use and (schema is not None or own):
        raise wrong("response_format" if own is None else own, "cannot be combined with tools: a call has another form")
    if use and use.schema:
        return {"json_schema": use.schema}
    return {} if schema is None else {"json_schema": schema}


def _response_schema(form: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of a `response_format`; None for free text. A schema beside json_object is llama-server's."""
    kind = form.get("type", "text")
    if kind == "text":
        return None
    if kind == "json_object":
        schema, where = form.get("schema") or {"type": "object"}, "response_format.schema"
    elif kind == "json_schema":
        wrapper = form.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
        where = "response_format.json_schema.schema"
    else:
        raise wrong("response_format.type", "must be text, json_object or json_schema")
    if not isinstance(schema, dict):
        raise wrong(where, "must be a JSON schema")
    return schema or {"type": "object"}


class ChatChoice:
    """One answer of a chat completion."""

    def __init__(self, index: int, logprobs: bool, use: ToolUse | None) -> None:
        self._index = index
        self._logprobs: list[dict[str, Any]] | None = [] if logprobs else None
        self._reader = CallReader(use.parameters, forced=use.schema is not None) if use else None
        self._most_calls = None if use is None or use.parallel else 1
        self._text: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._finish_reason = ""

    def opening(self) -> list[dict[str, Any]]:
        return [self._delta({"role": "assistant", "content": ""})]

    def feed(self, text: str, logprobs: dict[str, Any] | None) -> list[dict[str, Any]]:
        shown = self._reader.feed(text) if self._reader else text
        self._text.append(shown)
        entry = None
        if logprobs is not None and self._logprobs is not None:
            entry = of_chat(logprobs)
            self._logprobs.append(entry)
        if not shown and entry is None:
            return []
        return [self._delta({"content": shown}, entry)]

    def closing(self, finish_reason: str) -> list[dict[str, Any]]:
        deltas = []
        if self._reader:
            left, calls = self._reader.finish()
            self._text.append(left)
            self._calls = [call.encode() for call in calls[: self._most_calls]]
            if left:
                deltas.append(self._delta({"content": left}))
            for number, call in enumerate(self._calls):
                deltas.append(self._delta({"tool_calls": [{"index": number, **call}]}))
        self._finish_reason = "tool_calls" if self._calls else finish_reason
        return [*deltas, {**self._delta({}), "finish_reason": self._finish_reason}]

    def whole(self) -> dict[str, Any]:
        text = "".join(self._text)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message |= {"content": text or None, "tool_calls": self._calls}
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._finish_reason}

    def _delta(self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        content = None if logprobs is None else {"content": [logprobs], "refusal": None}
        return {"index": self._index, "delta": delta, "logprobs": content, "finish_reason": None}
