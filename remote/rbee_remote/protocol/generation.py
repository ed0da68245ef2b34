"""One request to a worker, and the events of its answer."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, in OpenAI's form. role: system, user, assistant or tool.

    tool_calls: of an assistant's turn. tool_call_id: which call a tool's turn answers. name: who speaks.
    """

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str = ""
    name: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Ranges are checked by `sampling.check`; the field's name stands in the error.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0, typical_p 1, repeat_penalty 1, frequency_penalty 0,
    presence_penalty 0, dry_multiplier 0, xtc_probability 0 and mirostat 0 switch the respective sampler off.
    mirostat: 0 or 2; it takes the place of top_k, top_p, min_p, typical_p and xtc. penalty_last_n and
    dry_penalty_last_n: how many tokens back they look, -1 for the whole context. logit_bias: token ids as text to what
    is added to their logits. seed None: a fresh one, told in `Started`. grammar: GBNF; json_schema: a JSON schema;
    one of them at most. logprobs: how many of the likeliest tokens are told with each token, 0 for the chosen one
    alone, None for nothing.
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
    logprobs: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class GenerateRequest:
    """POST /v1/inference on a worker's socket: a stream of `Started`, `TokenEvent`s, and `Done` or an error.

    request_id: 32 hex digits, chosen by the client, so that it can cancel before the first byte came back.
    One of messages (rendered with the model's chat template), prompt (taken raw) and tokens (taken as they are).
    max_tokens: None for what the context still holds. timeout_s: seconds left of the caller's deadline, queueing
    included; None for none. keep_alive_s: from now on for the worker, None to leave it as it is; negative for never.
    tools: functions that the model may call, in OpenAI's form, for the chat template.
    """

    request_id: str
    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_tokens: int | None = None
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    keep_alive_s: float | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tokens: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Started:
    """Event `started`: the request has its slot. max_tokens: what will be generated at most.

    reused_tokens: how many of prompt_tokens were computed already, for a request before.
    """

    prompt_tokens: int
    max_tokens: int
    seed: int
    reused_tokens: int = 0


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
class TokenEvent:
    """Event `token`. text may be empty while a character is not whole yet; tokens: generated so far."""

    text: str
    tokens: int
    logprobs: Logprobs | None = None


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
    """Event `done`. finish_reason: stop (end of text or a stop string), length, canceled or deadline."""

    finish_reason: str
    usage: Usage
    timings: WorkerTimings
