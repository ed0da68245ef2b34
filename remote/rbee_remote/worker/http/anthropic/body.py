"""A body of the Messages API becomes a job."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol import ChatOptions, GenerateRequest, Sampling
from rbee_remote.worker.http.answers.form import Job, Part, part_ids
from rbee_remote.worker.http.anthropic.choice import MessageChoice
from rbee_remote.worker.http.anthropic.form import MessageForm
from rbee_remote.worker.http.anthropic.messages import read_messages
from rbee_remote.worker.http.anthropic.tools import tools_of
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.formats import answer_format
from rbee_remote.worker.http.openai.tools import ToolNames

#: Whether the model is to think, None for what its template does.
_THINKS = {"enabled": True, "disabled": False, "adaptive": None, "between_tools": None}
#: What `answer_format` and others read.
_FORMATS = ("json_schema", "grammar", "regex", "lark", "output_format", "n_predict", "logit_bias")


@dataclasses.dataclass(frozen=True, slots=True)
class MessagesBody(fields.Body):
    """Fields of Anthropic, and chat_template_kwargs, which llama-server takes too."""

    system: Any = None
    messages: tuple[Any, ...] = ()
    stop_sequences: tuple[str, ...] = ()
    tools: tuple[Any, ...] = ()
    tool_choice: dict[str, Any] = dataclasses.field(default_factory=dict)
    thinking: dict[str, Any] = dataclasses.field(default_factory=dict)
    output_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    output_format: dict[str, Any] = dataclasses.field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)


#: All that is read.
FIELDS = frozenset({*(each.name for kind in (MessagesBody, Sampling) for each in dataclasses.fields(kind)), *_FORMATS})


def read(data: Any) -> Job:
    """Raises RemoteError USAGE naming the field."""
    body = fields.read(MessagesBody, data)
    names = ToolNames()
    # Tools come first: their names are theirs, and those of calls that are told of give way.
    tools, places, without_tools = tools_of(body.tools, body.tool_choice, names)
    messages, without_content = read_messages(body.system, body.messages, names)
    (request_id,) = part_ids(1)
    request = GenerateRequest(
        request_id=request_id,
        messages=messages,
        max_tokens=fields.token_limit(body),
        sampling=fields.sampling(data, logprobs=None, **_format(body, data)),
        stop=tuple(text for text in body.stop_sequences if text) or fields.stops(body.stop),
        chat=_options(body),
        tools=tools,
        lora=body.lora,
    )
    choice = MessageChoice(names, shows_thinking=body.thinking.get("display") != "omitted")
    return Job(
        id=f"msg_{request_id}",
        parts=(Part(request, choice),),
        stream=body.stream,
        form=MessageForm(),
        warnings=(*without_tools, *without_content),
        places=places,
    )


def _options(body: MessagesBody) -> ChatOptions:
    kind = body.thinking.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in _THINKS):
        raise wrong("thinking.type", f"must be {', '.join(_THINKS)}, got {kind!r:.40}")
    budget = body.thinking.get("budget_tokens") if kind == "enabled" else None
    if isinstance(budget, float) and budget.is_integer():
        budget = int(budget)
    if budget is not None and (type(budget) is not int or budget < 0):
        raise wrong("thinking.budget_tokens", "must be a number from 0")
    effort = body.output_config.get("effort") or ""
    if not isinstance(effort, str):
        raise wrong("output_config.effort", "must be a string")
    return ChatOptions(
        template_kwargs=body.chat_template_kwargs,
        think=_THINKS[kind] if kind else None,
        reasoning_effort=effort,
        think_budget=budget,
    )


def _format(body: MessagesBody, data: dict[str, Any]) -> dict[str, Any]:
    """As chat completions have it, under the names that it has here: output_format is what output_config was before."""
    given = body.output_config.get("format") or body.output_format or None
    return answer_format({**data, "response_format": given})
