"""Texts to embed or to rank as tokens, cut where that is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rbee_remote.worker.engine.interface import Engine

_PLACES = re.compile(r"(\{query\}|\{document\})")


def cut(tokens: Sequence[int], most: int, end: Sequence[int]) -> list[int]:
    """At most that many tokens: of what stands before `end`, which stays, the beginning."""
    if len(tokens) <= most:
        return list(tokens)
    end = list(end)[-most:]
    return [*tokens[: most - len(end)], *end]


def text_end(engine: Engine) -> list[int]:
    """The tokens behind each text to embed."""
    return engine.tokenize("", add_special=True, parse_special=True)[int(engine.info.adds_bos) :]


def pair_end(engine: Engine) -> list[int]:
    """The tokens behind each document."""
    frame = engine.info.rerank
    if not frame.template:
        return list(frame.end)
    return engine.tokenize(frame.template.rpartition("{document}")[2], add_special=False, parse_special=True)


def rerank_tokens(engine: Engine, query: str, document: str) -> list[int]:
    """By the model's template, or with the tokens that it has around them (llama-server: format_prompt_rerank). What
    looks like a control token in the two is tokenized as the text that it is."""
    frame = engine.info.rerank
    if not frame.template:
        one, other = (engine.tokenize(text, add_special=False, parse_special=False) for text in (query, document))
        return [*frame.begin, *one, *frame.between, *other, *frame.end]
    special = sorted(engine.info.special_tokens, key=len, reverse=True)
    texts = {"{query}": _split(query, special), "{document}": _split(document, special)}
    pieces = [""]
    for part in _PLACES.split(frame.template):
        first, *others = texts.get(part, [part])
        pieces[-1] += first
        pieces += others
    return [
        token for piece in pieces if piece for token in engine.tokenize(piece, add_special=False, parse_special=True)
    ]


def _split(text: str, special: list[str]) -> list[str]:
    """Pieces of a text, none of which has a control token's text in it. Joined they are the text."""
    pieces, start = [], 0
    if special:
        for found in re.finditer("|".join(map(re.escape, special)), text):
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
    return [*pieces, text[start:]]
