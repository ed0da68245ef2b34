"""One request to a worker, and the events of its answer."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, in OpenAI's form. role: system, user, assistant or tool.

    tool_calls: of an assistant's turn. tool_call_id: which call a tool's turn answers. name: who speaks.
    reasoning: what the assistant thought before it answered.
    """

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Ranges are checked by `sampling.check`; the field's name stands in the error.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0, typical_p 1, repeat_penalty 1, frequency_penalty 0,
    presence_penalty 0, dry_multiplier 0, xtc_probability 0 and mirostat 0 switch the respective sampler off.
    mirostat: 0 or 2; it takes the place of top_k, top_p, min_p, typical_p and xtc. penalty_last_n and
    dry_penalty_last_n: how many tokens back they look, -1 for the whole context. logit_bias: token ids as text to what
    is added to their logits. seed None: a fresh one, told in `Started`. grammar: GBNF; json_schema: a JSON schema;
    regex: a regular expression; lark: a grammar in llguidance's Lark; one of the four at most. strict: whether a schema
    with keywords that cannot be enforced is refused; else `Started.warnings` names them. logprobs: how many of the
    likeliest tokens are told with each token, 0 for the chosen one alone, None for nothing.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    logit_bias: dict[str, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    grammar: str = ""
    json_schema: dict[str, Any] | None = None
    regex: str = ""
    lark: str = ""
    strict: bool = True
    logprobs: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChatOptions:
    """How messages become a prompt, and where the answer's reasoning ends.

    template: Jinja to render them with, "" for the model's own. template_kwargs: further variables for it. think:
    whether the model is to reason before it answers, None for the template's default. reasoning_effort: low, medium,
    high or another word that the template knows, "" for its default. think_budget: tokens of reasoning after which it
    is ended, None for no limit. add_generation_prompt: whether the prompt ends where the assistant's answer begins.
    continue_final: whether the last message, the assistant's, is to be continued instead of answered; None for
    "where it is the assistant's".
    """

    template: str = ""
    template_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    think: bool | None = None
    reasoning_effort: str = ""
    think_budget: int | None = None
    add_generation_prompt: bool = True
    continue_final: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ToolOptions:
    """Functions that the model may call.

    functions: tools in OpenAI's form, as `{"type": "function", "function": {"name", "description", "parameters",
    "strict"}}`. choice: auto, required (at least one call, and nothing else) or none. only: names of those that may be
    called, empty for all. parallel: whether several calls may be made at once; None: where the model writes them
    itself, but one alone where a call is required.
    """

    functions: tuple[dict[str, Any], ...] = ()
    choice: str = "auto"
    only: tuple[str, ...] = ()
    parallel: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AdapterScale:
    """How strongly an adapter is applied. id: its place among those that the worker has."""

    id: int
    scale: float


@dataclasses.dataclass(frozen=True, slots=True)
class GenerateRequest:
    """POST /v1/inference on a worker's socket: a stream of `Started`, `TokenEvent`s, and `Done` or an error.

    request_id: 32 hex digits, chosen by the client, so that it can cancel before the first byte came back.
    One of messages (rendered with the model's chat template), prompt (taken raw) and tokens (taken as they are).
    max_tokens: None for what the context still holds. timeout_s: seconds left of the caller's deadline, queueing
    included; None for none. keep_alive_s: from now on for the worker, None to leave it as it is; negative for never.
    chat and tools: for requests with messages. lora: None for each adapter as it was loaded; else those that are not
    named are not applied.
    """

    request_id: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    chat: ChatOptions = ChatOptions()
    tools: ToolOptions = ToolOptions()
    tokens: tuple[int, ...] = ()
    lora: tuple[AdapterScale, ...] | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """Event `started`: the request has its slot. max_tokens: what will be generated at most.

    reused_tokens: how many of prompt_tokens were computed already, for a request before. warnings: what of the request
    cannot be honoured as asked, a line each.
    """

    prompt_tokens: int
    max_tokens: int
    seed: int
    reused_tokens: int = 0
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """A token with the natural logarithm of its probability, before any sampler but the model's own softmax.

    token: its text, U+FFFD where its bytes are no whole characters. bytes: those bytes.
    """

    token: str
    bytes: tuple[int, ...]
    logprob: float


@dataclasses.dataclass(frozen=True, slots=True)
class Logprobs:
    """chosen: the token that was taken. top: the likeliest ones, likeliest first."""

    chosen: Logprob
    top: tuple[Logprob, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class CallDelta:
    """A piece of a tool call. index: which call of the answer, from 0. id and name: with the first piece of a call,
    else "". arguments: the next characters of a JSON object."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class TokenEvent:
    """Event `token`. text may be empty while a character is not whole yet; tokens: generated so far.

    reasoning: text that belongs to the model's reasoning. calls: what it says of tool calls. token: its id, only of
    a tracked answer (`resume`), in which the token that ends it has an event too.
    """

    text: str
    tokens: int
    logprobs: Logprobs | None = None
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    token: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerTimings:
    """Seconds, on the worker's clock: waiting for a slot, computing the prompt, and generating."""

    queue_s: float
    prompt_s: float
    generate_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """Event `done`. finish_reason: stop (end of text or a stop string), tool_calls, length, canceled or deadline.
    stop: the request's stop string that ended it, "" for none."""

    finish_reason: str
    usage: Usage
    timings: WorkerTimings
    stop: str = ""
