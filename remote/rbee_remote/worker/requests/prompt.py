"""From a request to the tokens that the model is to continue: validation, tokens, and what fits."""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rbee_remote.protocol import ErrorCode, GenerateRequest, RemoteError
from rbee_remote.protocol.limits import MAX_STOP_LENGTH, MAX_STOPS, MAX_TEMPLATE, RESERVED_VARIABLES
from rbee_remote.worker.engine.interface import Engine, LoadedModel
from rbee_remote.worker.requests import pair, sampling, tool_use
from rbee_remote.worker.requests.shaping import Shape, shape
from rbee_remote.worker.templates.rendered import Rendered

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
#: Characters of a prompt's end that are kept; the longest opening of an answer known has 80.
END_LENGTH = 256


@dataclass(frozen=True, slots=True)
class Prompt:
    """max_tokens: what may be generated, by the request and by the room left in the context. end: the last characters
    of a rendered prompt, by which a dialect knows how the answer begins; "" for one that was taken as it is. warnings:
    what of the request cannot be honoured as asked. stops: as in `Rendered`. shape: None where all of the answer is
    content, of any form."""

    tokens: tuple[int, ...]
    max_tokens: int
    end: str = ""
    warnings: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    shape: Shape | None = None


def check(request: GenerateRequest) -> None:
    """What can be said about a request without a model. Raises RemoteError USAGE naming the field."""
    if not re.fullmatch(r"[0-9a-f]{32}", request.request_id):
        raise _usage("request_id", "must be 32 hex digits in lower case")
    if (request.prompt is not None) + bool(request.messages) + bool(request.tokens) != 1:
        raise _usage("", "one of messages, prompt and tokens must be given")
    for index, message in enumerate(request.messages):
        if message.role not in ROLES:
            raise _usage(f"messages[{index}].role", f"must be one of {', '.join(ROLES)}, got {message.role!r}")
        check_text(f"messages[{index}].content", message.content)
        _check_calls(f"messages[{index}].tool_calls", message.tool_calls)
        check_text(f"messages[{index}].reasoning", message.reasoning)
    check_text("prompt", request.prompt or "")
    if request.max_tokens is not None and request.max_tokens < 0:
        raise _usage("max_tokens", f"must be 0 or more, got {request.max_tokens}")
    if len(request.stop) > MAX_STOPS:
        raise _usage("stop", f"must have at most {MAX_STOPS} strings, got {len(request.stop)}")
    for index, text in enumerate(request.stop):
        if not 0 < len(text) <= MAX_STOP_LENGTH:
            raise _usage(f"stop[{index}]", f"must have 1 to {MAX_STOP_LENGTH} characters, got {len(text)}")
    if request.timeout_s is not None and not (math.isfinite(request.timeout_s) and request.timeout_s > 0):
        raise _usage("timeout_s", f"must be more than 0 seconds, got {request.timeout_s}")
    _check_chat(request)
    tool_use.check(request.tools)
    sampling.check(request.sampling)


class Prompter:
    """Makes prompts for one loaded model, from any thread. ctx: tokens of context that a slot has.

    The engine must not be closed before this is.
    """

    def __init__(self, engine: Engine, ctx: int) -> None:
        self._engine = engine
        self._ctx = ctx
        self._users = 0
        self._changed = threading.Condition()
        self._closed = False

    def close(self) -> None:
        """Nobody uses the engine through this any more."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._users)

    def tokenize(self, text: str, *, alone: bool = False, plain: bool = False) -> list[int]:
        """A text's tokens, with what the model wants around it, unless it is `alone`. plain: control tokens that stand
        in it are text. Raises RemoteError WORKER_GONE once closed."""
        with self._using() as engine:
            return engine.tokenize(text, add_special=not alone, parse_special=not plain)

    def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token, those of a control token by its name. Raises RemoteError: USAGE for a number that is
        no token, WORKER_GONE once closed."""
        with self._using() as engine:
            if any(not 0 <= token < engine.info.n_vocab for token in tokens):
                raise _usage("tokens", f"must be numbers from 0 to {engine.info.n_vocab - 1}")
            named = {token: text.encode() for text, token in engine.info.special_tokens.items()}
            return [named.get(token) or engine.piece(token) for token in tokens]

    def texts(self, texts: Sequence[str | Sequence[int]], most: int | None) -> list[list[int]]:
        """The tokens of texts to embed, with what the model wants around each. most: of a text; what is longer is cut;
        None for all. Raises RemoteError WORKER_GONE once closed."""
        with self._using() as engine:
            whole = [
                engine.tokenize(text, add_special=True, parse_special=True) if isinstance(text, str) else list(text)
                for text in texts
            ]
            return whole if most is None else [pair.cut(tokens, most, pair.text_end(engine)) for tokens in whole]

    def pairs(
        self, query: str, documents: Sequence[str], most: int | None, per_document: int | None
    ) -> list[list[int]]:
        """The tokens by which a reranker reads a query and each of the documents. Control tokens that stand in them are
        text. most: of both together, per_document: of the document; what is longer is cut; None for all. Raises
        RemoteError WORKER_GONE once closed."""
        with self._using() as engine:
            whole = [pair.rerank_tokens(engine, query, document) for document in documents]
            if per_document is not None:
                limit = len(pair.rerank_tokens(engine, query, "")) + per_document
                most = limit if most is None else min(most, limit)
            return whole if most is None else [pair.cut(tokens, most, pair.pair_end(engine)) for tokens in whole]

    def end_tokens(self) -> list[int]:
        """Those that end an answer. Raises as `tokenize` does."""
        with self._using() as engine:
            return [token for token in engine.info.special_tokens.values() if engine.is_end(token)]

    def prepare(self, request: GenerateRequest, rendered: Rendered | None = None) -> Prompt:
        """Tokens of a checked request, and what form its answer has. rendered: what the chat template made of its
        messages, where it has some.

        Raises RemoteError USAGE naming the field, and where the prompt leaves no room in the context; WORKER_GONE once
        closed."""
        with self._using():
            prompt = self._prepare(request, rendered)
            described = rendered is not None and rendered.tools_described
            made = shape(request, prompt.end, self._engine, tools_described=described)
        return prompt if made is None else replace(prompt, shape=made, warnings=(*prompt.warnings, *made.warnings))

    @contextlib.contextmanager
    def _using(self) -> Iterator[Engine]:
        """The engine, which is not closed before this ends. Raises RemoteError WORKER_GONE."""
        with self._changed:
            if self._closed:
                raise RemoteError(ErrorCode.WORKER_GONE, "the worker ended")
            self._users += 1
        try:
            yield self._engine
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def _prepare(self, request: GenerateRequest, rendered: Rendered | None) -> Prompt:
        tokens = self._tokens(request, rendered)
        if not tokens:
            raise _usage("", "the prompt is empty")
        room = self._ctx - len(tokens)
        if room < 1:
            # LangChain, LiteLLM and Claude Code know by "prompt is too long" that a shorter one would be served.
            raise RemoteError(
                ErrorCode.USAGE,
                f"the prompt is too long: {len(tokens)} tokens, and the context holds {self._ctx}",
                hint="shorten the prompt, or load the model with a larger --ctx",
                details={"prompt_tokens": len(tokens), "ctx": self._ctx},
            )
        most = room if request.max_tokens is None else min(request.max_tokens, room)
        if rendered is None:
            return Prompt(tuple(tokens), most)
        return Prompt(tuple(tokens), most, rendered.text[-END_LENGTH:], rendered.warnings, rendered.stops)

    def _tokens(self, request: GenerateRequest, rendered: Rendered | None) -> list[int]:
        info = self._engine.info
        if request.tokens:
            check_tokens(request.tokens, info.n_vocab)
            return list(request.tokens)
        text = request.prompt if rendered is None else rendered.text
        assert text is not None  # whoever has messages has rendered them
        check_text("messages", text)  # a template may have put together what is no text: halves of a character
        text = _without_special(text, info)
        if rendered is not None and rendered.seam and rendered.seam in text:
            return self._pieces(text.split(rendered.seam))
        return self._engine.tokenize(text, add_special=True, parse_special=True)

    def _pieces(self, pieces: list[str]) -> list[int]:
        """The tokens of a text whose pieces must not grow together. Each but the first is tokenized behind a line
        break, which is taken away again: at the beginning of a text some tokenizers add a blank."""
        info = self._engine.info
        around = self._engine.tokenize("", add_special=True, parse_special=True)
        line_break = self._engine.tokenize("\n", add_special=False, parse_special=True)
        tokens = around[: int(info.adds_bos)]
        tokens += self._engine.tokenize(pieces[0], add_special=False, parse_special=True)
        for piece in filter(None, pieces[1:]):
            behind = self._engine.tokenize("\n" + piece, add_special=False, parse_special=True)
            if behind[: len(line_break)] == line_break:
                tokens += behind[len(line_break) :]
            else:  # such a tokenizer drops line breaks, or joins them with what follows
                tokens += self._engine.tokenize(piece, add_special=False, parse_special=True)
        return tokens + around[len(around) - int(info.adds_eos) :]


def _without_special(text: str, info: LoadedModel) -> str:
    """Without the BOS and EOS that the tokenizer adds anyway: templates write them too, and twice misleads a model."""
    if info.adds_bos and info.bos:
        text = text.removeprefix(info.bos)
    if info.adds_eos and info.eos:
        text = text.removesuffix(info.eos)
    return text


def _check_chat(request: GenerateRequest) -> None:
    """What can be said about `ChatOptions` without a template."""
    chat = request.chat
    if chat.think_budget is not None and chat.think_budget < 0:
        raise _usage("think_budget", f"must be 0 or more, got {chat.think_budget}")
    if request.tools.functions and not request.messages:
        raise _usage("tools", "need messages")
    taken = sorted(RESERVED_VARIABLES & chat.template_kwargs.keys())
    if taken:
        raise _usage(
            f"chat.template_kwargs.{taken[0]}", "cannot be set: the template gets it from the request's fields"
        )
    if len(chat.template) > MAX_TEMPLATE:
        raise _usage("chat.template", f"must have at most {MAX_TEMPLATE} characters, got {len(chat.template)}")
    check_text("chat.template", chat.template)
    if not chat.continue_final:
        return
    last = request.messages[-1] if request.messages else None
    if last is None or last.role != "assistant":
        found = f"the last message is the {last.role}'s" if last else "there are no messages"
        raise _usage("chat.continue_final", f"needs a last message of the assistant's to continue; {found}")
    if last.tool_calls:
        raise _usage("chat.continue_final", "cannot continue a message that has tool calls")


def _check_calls(field: str, calls: tuple[dict[str, Any], ...]) -> None:
    """Templates look at the function's name and arguments; what else a call has is theirs."""
    for index, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict):
            raise _usage(f"{field}[{index}].function", "must be an object")
        for name in ("name", "arguments"):
            if not isinstance(function.get(name), str):
                raise _usage(f"{field}[{index}].function.{name}", "must be a string")


def check_tokens(tokens: Sequence[int], n_vocab: int) -> None:
    """Raises RemoteError USAGE for one that is not in the vocabulary, on which llama.cpp gives up."""
    wrong = next((token for token in tokens if not 0 <= token < n_vocab), None)
    if wrong is not None:
        raise _usage("tokens", f"must be from 0 to {n_vocab - 1}, got {wrong}")


def check_text(field: str, text: str) -> None:
    """Raises RemoteError USAGE for halves of a character, which have no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _usage(field, f"is not valid Unicode: {error.reason}") from error


def _usage(field: str, what: str) -> RemoteError:
    """field: empty where it is not about one."""
    return RemoteError(ErrorCode.USAGE, f"{field} {what}".strip(), details={"field": field} if field else {})
