"""Filling in: what stands before a gap and behind it, with other files for context, as the tokens of one prompt.

    [repository] name  [file] name, text …  [file] name  [prefix] before, begun  [suffix] behind  [middle]

As llama-server puts it together (format_prompt_infill), after Qwen 2.5 Coder: https://arxiv.org/abs/2409.12186.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.protocol.abilities import COMPLETIONS
from rbee_remote.worker.engine.interface import Fim
from rbee_remote.worker.http.llama_server import completion
from rbee_remote.worker.http.openai import fields
from rbee_remote.worker.http.openai.errors import wrong
from rbee_remote.worker.requests.prompt import check_text
from rbee_remote.worker.service.service import Service

#: Tokens of before and behind that are taken, before all else: llama-server's batch, which it shares three to one.
MOST_AROUND = 2048
#: Tokens that are kept free for the answer where a request does not say how many.
ANSWER = 128
#: What files and their repository are called where nobody says: llama-server's words.
_REPOSITORY, _FILE, _OTHER = "myproject", "filename", "tmp"
_SNIPPET = "\n\n--- snippet ---\n\n"

Tokenize = Callable[[str], Awaitable[list[int]]]


@dataclasses.dataclass(frozen=True, slots=True)
class InfillBody(completion.CompletionBody):
    """prompt: what is written in the gap already."""

    input_prefix: Any = None
    input_suffix: Any = None
    input_extra: tuple[Any, ...] = ()


FIELDS = completion.FIELDS | fields.names(InfillBody)


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """Tokens. extra: of other files, the nearest last."""

    before: Sequence[int]
    begun: Sequence[int]
    behind: Sequence[int]
    extra: Sequence[int] = ()


async def with_infill_prompt(service: Service, data: Any) -> Any:
    """The body of a completion. Raises RemoteError USAGE naming the field, or where the model cannot fill in;
    WORKER_GONE, or why the load failed."""
    body = fields.read(InfillBody, data)
    texts = {name: _text(name, getattr(body, name)) for name in ("input_prefix", "input_suffix")}
    begun = "" if body.prompt is None else _text("prompt", body.prompt)
    others = [_other(f"input_extra[{index}]", each) for index, each in enumerate(body.input_extra)]
    info = await service.state.wait_able(COMPLETIONS)
    if not info.fim.is_there:
        told = "this model cannot fill in: its vocabulary has no tokens for what stands before a gap and behind it"
        raise RemoteError(ErrorCode.USAGE, told, details={"field": "model"})

    async def tokenize(text: str) -> list[int]:
        return await service.tokenize(text, alone=True, plain=True)

    gap = Gap(
        await tokenize(texts["input_prefix"]),
        await tokenize(begun),
        await tokenize(texts["input_suffix"]),
        await _extra(info.fim, others, tokenize),
    )
    limit = fields.token_limit(body)
    room = service.config.ctx - (ANSWER if limit is None else min(limit, service.config.ctx // 2))
    bos = (await service.tokenize("", alone=False))[:1] if info.adds_bos else []
    return {**data, "prompt": prompt_tokens(gap, info.fim, bos, room)}


def prompt_tokens(gap: Gap, fim: Fim, bos: Sequence[int], room: int) -> list[int]:
    """room: tokens that the prompt may have. Of what has no place, the text farthest from the gap is left out."""
    left = max(0, min(MOST_AROUND, room - len(bos) - 3) - len(gap.begun))
    behind = gap.behind[: max(left // 4, left - len(gap.before))]
    before = gap.before[max(0, len(gap.before) - (left - len(behind))) :]
    around = [*bos, fim.prefix, *before, *gap.begun, fim.suffix, *behind, fim.middle]
    extra = gap.extra[max(0, len(gap.extra) - max(0, room - len(around))) :]
    return [*extra, *around]


async def _extra(fim: Fim, others: Sequence[tuple[str, str]], tokenize: Tokenize) -> list[int]:
    tokens: list[int] = []
    if fim.repository >= 0:
        tokens += [fim.repository, *await tokenize(f"{_REPOSITORY}\n")]
    for name, text in others:
        head = [fim.file, *await tokenize(f"{name}\n")] if fim.file >= 0 else await tokenize(_SNIPPET)
        tokens += [*head, *await tokenize(text)]
    if fim.file >= 0:
        tokens += [fim.file, *await tokenize(f"{_FILE}\n")]
    return tokens


def _other(where: str, given: Any) -> tuple[str, str]:
    """The name and the text of another file."""
    if not isinstance(given, dict):
        raise wrong(where, "must be an object with a text and a filename")
    return _text(f"{where}.filename", given.get("filename") or _OTHER), _text(f"{where}.text", given.get("text"))


def _text(where: str, given: Any) -> str:
    if not isinstance(given, str):
        raise wrong(where, "is missing" if given is None else "must be a text")
    check_text(where, given)
    return given
