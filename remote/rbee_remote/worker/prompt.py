"""From a request to the tokens that the model is to continue: validation, template, tokens, and what fits."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError
from rbee_remote.worker import sampling
from rbee_remote.worker.chat import ChatTemplate
from rbee_remote.worker.interface import Engine, ModelInfo

ROLES = ("system", "user", "assistant", "tool")
MAX_STOPS = 16
MAX_STOP_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """max_tokens: what may be generated, by the request and by the room left in the context."""

    tokens: tuple[int, ...]
    max_tokens: int


def check(request: GenerateRequest) -> None:
    """What can be said about a request without a model. Raises RemoteError USAGE naming the field."""
    if not re.fullmatch(r"[0-9a-f]{32}", request.request_id):
        raise _usage("request_id must be 32 hex digits in lower case")
    if (request.prompt is None) == (not request.messages):
        raise _usage("either messages or prompt must be given")
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise _usage(f"messages[{index}].role must be one of {', '.join(ROLES)}, got {message.role!r}")
        _check_text(f"messages[{index}].content", message.content)
    _check_text("prompt", request.prompt or "")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise _usage(f"max_tokens must be 1 or more, got {request.max_tokens}")
    if len(request.stop) > MAX_STOPS:
        raise _usage(f"stop must have at most {MAX_STOPS} strings, got {len(request.stop)}")
    for index, text in enumerate(request.stop):
        if not 0 < len(text) <= MAX_STOP_LENGTH:
            raise _usage(f"stop[{index}] must have 1 to {MAX_STOP_LENGTH} characters, got {len(text)}")
    if request.timeout_s is not None and not (math.isfinite(request.timeout_s) and request.timeout_s > 0):
        raise _usage(f"timeout_s must be more than 0 seconds, got {request.timeout_s}")
    sampling.check(request.sampling)


class Prompter:
    """Makes prompts for one loaded model. ctx: tokens of context that a slot has. Safe to call from several threads."""

    def __init__(self, engine: Engine, ctx: int) -> None:
        self._engine = engine
        self._ctx = ctx

    def prepare(self, request: GenerateRequest) -> Prompt:
        """Tokens of a checked request. Raises RemoteError: USAGE where the prompt leaves no room in the context, and
        what the chat template raises."""
        text = request.prompt if request.prompt is not None else self._template.render(request.messages)
        text = _without_special(text, self._engine.info)
        tokens = self._engine.tokenize(text, add_special=True, parse_special=True)
        if not tokens:
            raise _usage("the prompt is empty")
        room = self._ctx - len(tokens)
        if room < 1:
            raise RemoteError(
                ErrorCode.USAGE,
                f"the prompt has {len(tokens)} tokens, the context holds {self._ctx}",
                hint="shorten the prompt, or load the model with a larger --ctx",
                details={"prompt_tokens": len(tokens), "ctx": self._ctx},
            )
        return Prompt(tuple(tokens), min(request.max_tokens or room, room))

    @functools.cached_property
    def _template(self) -> ChatTemplate:
        """Compiled when a chat needs it: a model whose template is broken still takes raw prompts."""
        return ChatTemplate(self._engine.info)


def _without_special(text: str, info: ModelInfo) -> str:
    """Without the BOS and EOS that the tokenizer adds anyway: templates write them too, and twice misleads a model."""
    if info.adds_bos and info.bos:
        text = text.removeprefix(info.bos)
    if info.adds_eos and info.eos:
        text = text.removesuffix(info.eos)
    return text


def _check_text(field: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _usage(f"{field} is not valid Unicode: {error.reason}") from error


def _usage(message: str) -> RemoteError:
    return RemoteError(ErrorCode.USAGE, message)
