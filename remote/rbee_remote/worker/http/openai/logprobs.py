"""Log probabilities in the two forms that OpenAI has for them. What comes in is `protocol.Logprobs`, encoded."""

from __future__ import annotations

import codecs
from typing import Any


def of_chat(logprobs: dict[str, Any]) -> dict[str, Any]:
    """The entry of one token in `logprobs.content`."""
    return {**_entry(logprobs["chosen"]), "top_logprobs": [_entry(token) for token in logprobs["top"]]}


class CompletionLogprobs:
    """Tokens of a completion, side by side in lists; offset: characters that stand before the first one."""

    def __init__(self, offset: int = 0) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def entry(self, logprobs: dict[str, Any]) -> dict[str, Any]:
        """The lists of one token."""
        chosen = logprobs["chosen"]
        offset = self._offset
        self._offset += len(self._decoder.decode(bytes(chosen["bytes"])))
        return {
            "tokens": [chosen["token"]],
            "token_logprobs": [_finite(chosen["logprob"])],
            "top_logprobs": [{token["token"]: _finite(token["logprob"]) for token in logprobs["top"]}],
            "text_offset": [offset],
        }


def joined(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The lists of several tokens."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for entry in entries for value in entry[name]] for name in names}


def _entry(token: dict[str, Any]) -> dict[str, Any]:
    return {"token": token["token"], "logprob": _finite(token["logprob"]), "bytes": list(token["bytes"])}


def _finite(logprob: float) -> float:
    """OpenAI's number for what cannot be: JSON has no infinity."""
    return max(logprob, -9999.0)
