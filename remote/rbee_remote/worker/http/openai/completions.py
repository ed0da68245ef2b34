"""Completions: texts or tokens become a request for each choice, and tokens become text."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol import GenerateRequest
from rbee_remote.worker.http.answers.form import Job, Part, part_ids
from rbee_remote.worker.http.openai import fields, formats
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.form import ChunkForm
from rbee_remote.worker.http.openai.logprobs import CompletionLogprobs, joined

MOST_LOGPROBS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionBody(fields.Body):
    prompt: Any = None
    echo: bool = False
    suffix: str = ""
    best_of: int | None = None
    logprobs: int | None = None


#: What is read of a body, in the words of several servers.
FIELDS = fields.names(CompletionBody) | formats.NAMES


def read(data: Any, most: int = fields.MOST_CHOICES) -> Job:
    """most: choices that the worker has room for. Raises RemoteError USAGE naming the field."""
    body = fields.read(CompletionBody, data)
    fields.check_choices(body, most)
    prompts = fields.texts_or_tokens("prompt", body.prompt)
    _check(body, prompts)
    if len(prompts) * body.n > most:
        raise wrong("prompt", f"prompts times n must be {most} at most")
    ids = part_ids(len(prompts) * body.n)
    parts = []
    for number, request_id in enumerate(ids):
        prompt = prompts[number // body.n]
        request = fields.for_choice(_request(body, data, prompt), request_id, number % body.n, body)
        echo = prompt if body.echo and isinstance(prompt, str) else ""
        choice = CompletionChoice(number, body.logprobs is not None, echo)
        parts.append(Part(request, choice, counts_prompt=number % body.n == 0))
    return Job(
        id=f"cmpl-{ids[0]}",
        parts=tuple(parts),
        stream=body.stream,
        form=ChunkForm("text_completion", "text_completion", include_usage=fields.include_usage(body)),
    )


def _check(body: CompletionBody, prompts: list[str | tuple[int, ...]]) -> None:
    if body.suffix:
        raise wrong("suffix", "is not served")
    if body.best_of not in (None, body.n):
        raise wrong("best_of", "must be the same as n, or left out")
    if body.logprobs is not None and not 0 <= body.logprobs <= MOST_LOGPROBS:
        raise wrong("logprobs", f"must be from 0 to {MOST_LOGPROBS}, got {body.logprobs}")
    if body.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise wrong("echo", "is not served for prompts of tokens")
    if body.echo and body.logprobs is not None:
        raise wrong("echo", "cannot be combined with logprobs: those of the prompt are not known")


def _request(body: CompletionBody, data: dict[str, Any], prompt: str | tuple[int, ...]) -> GenerateRequest:
    return GenerateRequest(
        request_id="",
        prompt=prompt if isinstance(prompt, str) else None,
        tokens=() if isinstance(prompt, str) else prompt,
        max_tokens=fields.token_limit(body),
        sampling=fields.sampling(data, logprobs=body.logprobs, **formats.answer_format(data)),
        stop=fields.stops(body.stop),
    )


class CompletionChoice:
    """One answer of a completion. echo: text that stands before it."""

    def __init__(self, index: int, logprobs: bool, echo: str) -> None:
        self._index = index
        self._echo = echo
        self._text = [echo]
        self._logprobs = CompletionLogprobs() if logprobs else None
        self._entries: list[dict[str, Any]] = []
        self._finish_reason = ""

    def opening(self) -> list[dict[str, Any]]:
        return [self._choice(self._echo)] if self._echo else []

    def feed(self, token: dict[str, Any]) -> list[dict[str, Any]]:
        text, logprobs = token["text"], token["logprobs"]
        self._text.append(text)
        entry = None
        if logprobs is not None and self._logprobs is not None:
            entry = self._logprobs.entry(logprobs)
            self._entries.append(entry)
        return [self._choice(text, entry)] if text or entry else []

    def closing(self, finish_reason: str) -> list[dict[str, Any]]:
        self._finish_reason = finish_reason
        return [{**self._choice(""), "finish_reason": finish_reason}]

    def whole(self) -> dict[str, Any]:
        logprobs = joined(self._entries) if self._logprobs else None
        return {**self._choice("".join(self._text), logprobs), "finish_reason": self._finish_reason}

    def _choice(self, text: str, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"index": self._index, "text": text, "logprobs": logprobs, "finish_reason": None}
