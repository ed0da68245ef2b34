"""Chat completions: a body becomes a request for each choice."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol import ChatOptions, GenerateRequest
from rbee_remote.worker.http.answers.form import Job, Part, part_ids
from rbee_remote.worker.http.openai import fields, formats
from rbee_remote.worker.http.openai.chat_choice import ChatChoice
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.form import ChunkForm
from rbee_remote.worker.http.openai.messages import read_messages
from rbee_remote.worker.http.openai.tools import ToolNames, read_tools

MOST_TOP_LOGPROBS = 20

#: Variables of templates that are options of their own here.
_OF_TEMPLATES = ("enable_thinking", "reasoning_effort", "add_generation_prompt")


@dataclasses.dataclass(frozen=True, slots=True)
class ChatBody(fields.Body):
    """thinking_budget: -1 for no limit, as in llama-server. reasoning_format: none has reasoning stand in the content,
    all others apart from it."""

    messages: tuple[dict[str, Any], ...] = ()
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: tuple[Any, ...] = ()
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    chat_template: str = ""
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    enable_thinking: bool | None = None
    reasoning_effort: str = ""
    reasoning_format: str = ""
    thinking_budget: int | None = None
    think_budget: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool | None = None


#: What is read of a body, in the words of several servers; what is refused by its name is no less known.
FIELDS = fields.names(ChatBody) | formats.NAMES | {"functions", "function_call"}


def read(data: Any, most: int = fields.MOST_CHOICES) -> Job:
    """most: choices that the worker has room for. Raises RemoteError USAGE naming the field."""
    body = fields.read(ChatBody, _with_variables(data))
    fields.check_choices(body, most)
    for name in ("functions", "function_call"):
        if data.get(name) is not None:
            raise wrong(name, "is not served; use tools and tool_choice")
    names = ToolNames()
    request = _request(body, data, names)
    ids = part_ids(body.n)
    inline = body.reasoning_format == "none"
    parts = tuple(
        Part(
            fields.for_choice(request, request_id, index, body),
            ChatChoice(index, names, logprobs=body.logprobs, inline=inline),
            counts_prompt=index == 0,
        )
        for index, request_id in enumerate(ids)
    )
    return Job(
        id=f"chatcmpl-{ids[0]}",
        parts=parts,
        stream=body.stream,
        form=ChunkForm("chat.completion", "chat.completion.chunk", include_usage=fields.include_usage(body)),
    )


def _with_variables(data: Any) -> Any:
    """The body with what `chat_template_kwargs` says of its own fields, where those do not say it themselves."""
    variables = data.get("chat_template_kwargs") if isinstance(data, dict) else None
    if not isinstance(variables, dict):
        return data
    known = {name: variables[name] for name in _OF_TEMPLATES if name in variables}
    said = {name: value for name, value in data.items() if value is not None}
    others = {name: value for name, value in variables.items() if name not in known}
    return {**known, **said, "chat_template_kwargs": others}


def _request(body: ChatBody, data: dict[str, Any], names: ToolNames) -> GenerateRequest:
    # Tools come first: their names are theirs, and those of calls that are told of give way.
    tools = read_tools(body.tools, body.tool_choice, body.parallel_tool_calls, names)
    return GenerateRequest(
        request_id="",
        messages=read_messages(body.messages, names),
        max_tokens=fields.token_limit(body, max_completion_tokens=body.max_completion_tokens),
        sampling=fields.sampling(data, logprobs=_logprobs(body), **formats.answer_format(data)),
        stop=fields.stops(body.stop),
        chat=_options(body),
        tools=tools,
    )


def _options(body: ChatBody) -> ChatOptions:
    """An effort of none is OpenAI's word for no reasoning."""
    effort, think = body.reasoning_effort, body.enable_thinking
    if effort == "none":
        effort, think = "", False if think is None else think
    budget = body.think_budget if body.thinking_budget is None else body.thinking_budget
    return ChatOptions(
        template=body.chat_template,
        template_kwargs=body.chat_template_kwargs,
        think=think,
        reasoning_effort=effort,
        think_budget=None if budget == -1 else budget,
        add_generation_prompt=body.add_generation_prompt,
        continue_final=body.continue_final_message,
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
