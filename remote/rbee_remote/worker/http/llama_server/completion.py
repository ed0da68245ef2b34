"""llama-server's own completions: a body becomes a request for each answer."""

from __future__ import annotations

import dataclasses
from typing import Any

from rbee_remote.protocol import GenerateRequest
from rbee_remote.worker.http.answers.form import Job, Part, part_ids
from rbee_remote.worker.http.llama_server.form import CompletionChoice, CompletionForm
from rbee_remote.worker.http.openai import fields, formats
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.http.openai.prompts import is_one

MOST_PROBS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class CompletionBody(fields.Body):
    """n_cmpl: answers for each prompt. n_probs: tokens whose probabilities are told, with the one that was taken.
    response_fields: what to tell alone, with `/` between the names on the way to it."""

    prompt: Any = None
    n_cmpl: int | None = None
    n_probs: int = 0
    post_sampling_probs: bool = False
    return_tokens: bool = False
    response_fields: tuple[str, ...] = ()


#: What is read of a body. cache_prompt says what is so anyhow, unless it is false.
FIELDS = fields.names(CompletionBody) | formats.NAMES


def read(body: Any, data: Any, most: int) -> Job:
    """body: with its prompts as `fields.texts_or_tokens` takes them; data: as it came. most: answers that the worker
    has room for. Raises RemoteError USAGE naming the field."""
    read_body = fields.read(CompletionBody, body)
    if read_body.n_cmpl is not None:
        read_body = dataclasses.replace(read_body, n=read_body.n_cmpl)
    fields.check_choices(read_body, most, "n" if read_body.n_cmpl is None else "n_cmpl")
    _check(read_body)
    prompts = fields.texts_or_tokens("prompt", read_body.prompt)
    count = len(prompts) * read_body.n
    if count > most:
        raise wrong("prompt", f"prompts times n_cmpl must be {most} at most")
    ids = part_ids(count)
    form = CompletionForm(
        read_body.response_fields,
        is_list=count > 1 or not is_one(data["prompt"]),
        stream=read_body.stream,
    )
    parts = tuple(
        _part(read_body, body, prompts[number // read_body.n], number, request_id)
        for number, request_id in enumerate(ids)
    )
    return Job(f"cmpl-{ids[0]}", parts, read_body.stream, form, tells_tokens=True)


def _check(body: CompletionBody) -> None:
    if not 0 <= body.n_probs <= MOST_PROBS:
        raise wrong("n_probs", f"must be from 0 to {MOST_PROBS}, got {body.n_probs}")
    if body.post_sampling_probs and body.n_probs:
        raise wrong("post_sampling_probs", "is not served: probabilities are told as they are before sampling")


def _part(
    body: CompletionBody, data: dict[str, Any], prompt: str | tuple[int, ...], number: int, request_id: str
) -> Part:
    request = GenerateRequest(
        request_id="",
        prompt=prompt if isinstance(prompt, str) else None,
        tokens=() if isinstance(prompt, str) else prompt,
        max_tokens=fields.token_limit(body),
        sampling=fields.sampling(data, logprobs=body.n_probs or None, **formats.answer_format(data)),
        stop=fields.stops(body.stop),
    )
    request = fields.for_choice(request, request_id, number % body.n, body)
    choice = CompletionChoice(number, request, stream=body.stream, return_tokens=body.return_tokens)
    return Part(request, choice, counts_prompt=number % body.n == 0)
