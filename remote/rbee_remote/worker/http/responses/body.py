"""A body of the Responses API becomes a job."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol import ChatOptions, ErrorCode, GenerateRequest, RemoteError
from rbee_remote.worker.http.answers.form import Job, Part, part_ids
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.formats import answer_format
from rbee_remote.worker.http.responses.choice import ResponseChoice
from rbee_remote.worker.http.responses.form import ResponseForm
from rbee_remote.worker.http.responses.items import read_items
from rbee_remote.worker.http.responses.tools import FunctionNames, tools_of

MOST_TOP_LOGPROBS = 20

#: What needs a memory, or somebody who runs it later. Each with what to do instead.
_KEPT = {
    "previous_response_id": "this server keeps no responses: send the whole conversation as input",
    "conversation": "this server keeps no conversations: send the whole of it as input",
    "prompt": "this server keeps no prompts: send instructions and input",
    "background": "this server keeps no responses: leave it out, and use stream to follow a long one",
}
_LOGPROBS = "message.output_text.logprobs"


@dataclasses.dataclass(frozen=True, slots=True)
class ResponseBody(fields.Body):
    input: Any = None
    instructions: str = ""
    max_output_tokens: int | None = None
    tools: tuple[Any, ...] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] = dataclasses.field(default_factory=dict)
    reasoning: dict[str, Any] = dataclasses.field(default_factory=dict)
    include: tuple[str, ...] = ()
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    enable_thinking: bool | None = None


#: What is read of a body; what is refused by its name is no less known, and metadata is only to be told again.
FIELDS = fields.names(ResponseBody) | _KEPT.keys() | {"metadata"}


def read(data: Any, most: int = 1) -> Job:
    """most: choices that there are room for; a response has one. Raises RemoteError USAGE naming the field."""
    body = fields.read(ResponseBody, data)
    fields.check_choices(body, min(most, 1))
    for name, instead in _KEPT.items():
        if data.get(name) not in (None, False, ""):
            raise wrong(name, instead)
    names = FunctionNames()
    # Tools come first: their names are theirs, and those of calls that are told of give way.
    tools, places, without_tools = tools_of(body.tools, body.tool_choice, body.parallel_tool_calls, names)
    messages, without_items = read_items(body.input, body.instructions, names)
    (request_id,) = part_ids(1)
    request = GenerateRequest(
        request_id=request_id,
        messages=messages,
        max_tokens=fields.token_limit(body, max_output_tokens=body.max_output_tokens),
        sampling=fields.sampling(data, logprobs=_logprobs(body), **_format(body, data)),
        stop=fields.stops(body.stop),
        chat=_options(body),
        tools=tools,
        lora=body.lora,
    )
    choice = ResponseChoice(names, logprobs=request.sampling.logprobs is not None)
    return Job(
        id=f"resp_{request_id}",
        parts=(Part(request, choice),),
        stream=body.stream,
        form=ResponseForm(choice, data, request),
        warnings=(*without_tools, *without_items),
        places=places,
        can_resume=request.sampling.logprobs is None,  # its last events tell those of all tokens
    )


def _options(body: ResponseBody) -> ChatOptions:
    """An effort of none is OpenAI's word for no reasoning."""
    effort = body.reasoning.get("effort") or ""
    if not isinstance(effort, str):
        raise wrong("reasoning.effort", "must be a string")
    think = body.enable_thinking
    if effort == "none":
        effort, think = "", False if think is None else think
    return ChatOptions(template_kwargs=body.chat_template_kwargs, think=think, reasoning_effort=effort)


def _format(body: ResponseBody, data: dict[str, Any]) -> dict[str, Any]:
    """As chat completions have it, under the name that it has here."""
    try:
        return answer_format({**data, "response_format": body.text.get("format")})
    except RemoteError as error:
        field = error.details.get("field")
        if not isinstance(field, str):
            raise
        here = field.replace("response_format", "text.format", 1)
        message = error.message.replace("response_format", "text.format")
        raise RemoteError(ErrorCode.USAGE, message, details={"field": here}) from error


def _logprobs(body: ResponseBody) -> int | None:
    if not body.top_logprobs and _LOGPROBS not in body.include:
        return None
    top = body.top_logprobs or 0
    if not 0 <= top <= MOST_TOP_LOGPROBS:
        raise wrong("top_logprobs", f"must be from 0 to {MOST_TOP_LOGPROBS}, got {top}")
    return top
