"""Answers as llama-server's own completions have them: an object for each token, and a last one with what it took."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from rbee_remote.protocol import GenerateRequest, RemoteError, encode
from rbee_remote.serving import sse
from rbee_remote.worker.http.answers.form import Part, Piece
from rbee_remote.worker.http.answers.summary import Summary, Taken
from rbee_remote.worker.http.answers.tracking import State
from rbee_remote.worker.http.openai import errors
from rbee_remote.worker.http.openai.logprobs import of_chat

#: What ended an answer, but for a stop string.
_ENDS = {"length": "limit", "stop": "eos"}


class CompletionChoice:
    """One answer. request: the one that it is of. return_tokens: whether a whole answer has its tokens, as each piece
    of a stream has its own."""

    def __init__(self, index: int, request: GenerateRequest, *, stream: bool, return_tokens: bool) -> None:
        self._index = index
        self._request = request
        self._stream = stream
        self._return_tokens = return_tokens
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._probs: list[dict[str, Any]] = []
        self._count = 0
        self._last: dict[str, Any] = {}

    def opening(self) -> list[Piece]:
        return []

    def feed(self, token: dict[str, Any]) -> list[Piece]:
        """The token that ends an answer is none of its own; text that was held back comes without one."""
        is_new, self._count = token["tokens"] > self._count, token["tokens"]
        if not is_new and not token["text"]:
            return []
        self._text.append(token["text"])
        ids = [token["token"]] if is_new and token.get("token") is not None else []
        self._tokens += ids
        probs = []
        if is_new and token["logprobs"] is not None:
            probs = [{"id": token.get("token"), **of_chat(token["logprobs"])}]
            self._probs += probs
        if not self._stream:
            return []
        piece = {"index": self._index, "content": token["text"], "tokens": ids, "stop": False}
        return [{**piece, "tokens_predicted": self._count, **({"completion_probabilities": probs} if probs else {})}]

    def closing(self, finish_reason: str) -> list[Piece]:
        """What is known of its end without the numbers, which the form adds."""
        text = "".join(self._text)
        limit, has_all = self._request.max_tokens, self._return_tokens and not self._stream
        self._last = {
            "index": self._index,
            "content": "" if self._stream else text,
            "tokens": self._tokens if has_all else [],
            "stop": True,
            "generation_settings": self._settings(),
            "prompt": self._request.tokens if self._request.prompt is None else self._request.prompt,
            "has_new_line": "\n" in text,
            "truncated": finish_reason == "length" and (limit is None or self._count < limit),
            "stop_type": _ENDS.get(finish_reason, "none"),
        }
        if self._probs and not self._stream:
            self._last["completion_probabilities"] = self._probs
        return [self._last]

    def whole(self) -> dict[str, Any]:
        return self._last

    def ended(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """All of its end. more: the numbers."""
        self._last = {**self._last, **more}
        return self._last

    def _settings(self) -> dict[str, Any]:
        sampling, limit = self._request.sampling, self._request.max_tokens
        lora = [encode(each) for each in self._request.lora or ()]
        most = -1 if limit is None else limit
        seed = -1 if sampling.seed is None else sampling.seed
        return {**encode(sampling), "seed": seed, "n_predict": most, "max_tokens": most, "lora": lora}


class CompletionForm:
    """response_fields: what of an answer is told, all where there are none. is_list: whether answers that are no stream
    come in a list."""

    def __init__(self, response_fields: Sequence[str], *, is_list: bool, stream: bool) -> None:
        self._fields = response_fields
        self._is_list = is_list
        self._stream = stream
        self._model = ""
        self._warnings: list[str] = []

    def begin(self, state: State) -> None:
        self._model = state.model

    def opening(self, part: Part, warnings: Sequence[str], _: Summary) -> list[Piece]:
        self._warnings += [each for each in warnings if each not in self._warnings]
        return part.choice.opening()

    def token(self, part: Part, token: dict[str, Any]) -> list[Piece]:
        return part.choice.feed(token)

    def closing(self, part: Part, done: Mapping[str, Any], taken: Taken) -> list[Piece]:
        part.choice.closing(done["finish_reason"])
        choice = part.choice
        assert isinstance(choice, CompletionChoice)
        last = choice.ended(
            {
                "model": self._model,
                "tokens_predicted": taken.generated,
                "tokens_evaluated": taken.prompt,
                "tokens_cached": taken.prompt + taken.generated,
                "stopping_word": done.get("stop") or "",
                **({"stop_type": "word"} if done.get("stop") else {}),
                "timings": taken.encode(),
                **({"warnings": self._warnings} if self._warnings else {}),
            }
        )
        return [self._told(last)]

    def line(self, piece: Piece) -> str:
        return sse.data(piece)

    def ending(self, _: Summary) -> list[str]:
        return []

    def error(self, error: RemoteError) -> list[str]:
        return [sse.data(errors.body(error))]

    def whole(self, parts: Sequence[Part], _: Summary) -> Any:
        answers = [self._told(part.choice.whole()) for part in parts]
        return answers if self._is_list else answers[0]

    def _told(self, answer: dict[str, Any]) -> dict[str, Any]:
        if not self._fields:
            return answer
        found = ((path, _at(answer, path)) for path in self._fields)
        return {path: value for path, value in found if value is not _MISSING}


_MISSING = object()


def _at(answer: dict[str, Any], path: str) -> Any:
    def step(value: Any, name: str) -> Any:
        return value.get(name, _MISSING) if isinstance(value, dict) else _MISSING

    return functools.reduce(step, path.split("/"), answer)
