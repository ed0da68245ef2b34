"""Answers of models as dialects read them: cases, and texts that a dialect's grammar allows."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema
import llguidance
import numpy as np

from rbee_remote.worker.dialects.interface import (
    CallArguments,
    CallBegin,
    Content,
    Dialect,
    Piece,
    Reasoning,
    Tools,
    Vocabulary,
)

ADD = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "array", "items": {"enum": [1, 2, "Mo"]}}},
    "required": ["city"],
    "additionalProperties": False,
}
RUN = {
    "type": "object",
    "properties": {"code": {"type": "string"}},
    "required": ["code"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
TOOLS = Tools({"add": {**ADD, "additionalProperties": False}, "weather": WEATHER, "run": RUN, "now": NOTHING})


@dataclass(frozen=True)
class Call:
    """arguments: JSON, or as much of it as was written."""

    name: str
    arguments: str = "{}"
    id: str = ""


@dataclass(frozen=True)
class Case:
    """What a model wrote, and what of it is what. prompt: what it was written after."""

    text: str
    pieces: list[Content | Reasoning | Call]
    tools: Tools | None = TOOLS
    prompt: str = ""
    #: Whether it is the same where the markers are tokens, where they are not, or both.
    markers: tuple[str, ...] = ("tokens", "texts")


def calls(text: str, *expected: Call, prompt: str = "") -> Case:
    return Case(text, list(expected), prompt=prompt)


def joined(pieces: Iterable[Piece]) -> list[Content | Reasoning | Call]:
    """Neighbours of one kind as one."""
    out: list[Content | Reasoning | Call] = []
    for piece in pieces:
        last = out[-1] if out else None
        match piece:
            case CallBegin(name, call_id):
                out.append(Call(name, "", call_id))
            case CallArguments(text):
                assert isinstance(last, Call)
                out[-1] = Call(last.name, last.arguments + text, last.id)
            case Content(text) | Reasoning(text):
                assert text
                if type(last) is type(piece):
                    out[-1] = type(piece)(last.text + text)
                else:
                    out.append(piece)
    return out


def vocabulary(dialect: Dialect) -> dict[str, int]:
    """All its markers as tokens, behind those for the 256 bytes and the end of an answer."""
    return {marker: 257 + number for number, marker in enumerate(dialect.markers)}


def tokens(text: str, known: Vocabulary) -> list[tuple[str, bool]]:
    """The text as markers, True, and what stands between them."""
    if not known:
        return [(text, False)]
    pattern = "|".join(re.escape(marker) for marker in sorted(known, key=len, reverse=True))
    return [(part, part in known) for part in re.split(f"({pattern})", text) if part]


def read(
    dialect: Dialect,
    text: str,
    *,
    tools: Tools | None = TOOLS,
    prompt: str = "",
    known: Mapping[str, int] | None = None,
    cut: random.Random | None = None,
) -> list[Content | Reasoning | Call]:
    """cut: cuts the text between markers anywhere."""
    reader = dialect.reader(tools, known or {}, prompt)
    out: list[Piece] = []
    for part, marker in tokens(text, known or {}):
        if marker:
            out += reader.feed(part, marker=True)
            continue
        at = 0
        while at < len(part):
            size = cut.randint(1, 4) if cut else len(part)
            out += reader.feed(part[at : at + size])
            at += size
    return joined([*out, *reader.finish()])


def check(dialect: Dialect, case: Case) -> None:
    """As a whole and however it is cut, with markers that are tokens and that are not."""
    for mode in case.markers:
        known = vocabulary(dialect) if mode == "tokens" else {}
        for cut in (None, random.Random(1), random.Random(2), random.Random(3)):
            found = read(dialect, case.text, tools=case.tools, prompt=case.prompt, known=known, cut=cut)
            assert found == case.pieces, mode


#: Texts that end what a random walk through bytes would hardly find the end of: tokens in an ordinary vocabulary.
WORDS = (
    *("</think>", "[/THINK]", "<|END_THINKING|>", "<|end|>", "</seed:think>"),
    *("</parameter>", "\n</parameter>", "</arg_value>", "</\uff5cDSML\uff5cparameter>"),
)
END_OF_ANSWER = 256


def walk(grammar: str, known: Mapping[str, int], seed: int, longest: int = 800) -> str | None:
    """A random text that the grammar allows; None where none ended in time."""
    chance = random.Random(seed)
    special = ["<end>", *known]
    plain = [bytes([byte]) for byte in range(256)]
    words = [word.encode() for word in WORDS if word not in known]
    pieces = [*plain, *(marker.encode() for marker in special), *words]
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes(pieces, len(special))))
    matcher = llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(grammar))
    out = b""
    for step in range(longest):
        assert not matcher.is_error(), f"{matcher.get_error()}\n{grammar}\n{out!r}"
        mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")[: len(pieces)]).tolist()
        if matcher.is_stopped() or not allowed or (END_OF_ANSWER in allowed and chance.random() < 0.3):
            return out.decode()
        token = _choose(chance, [token for token in allowed if token != END_OF_ANSWER] or allowed, step)
        if token == END_OF_ANSWER:
            return out.decode()
        assert matcher.consume_token(token)
        out += pieces[token]
    return None


def _choose(chance: random.Random, allowed: list[int], step: int) -> int:
    """ASCII as a rule; markers and what ends strings and objects often, so that texts come to an end."""
    markers = [token for token in allowed if token > END_OF_ANSWER]
    closing = [token for token in allowed if token < 256 and chr(token) in '"}]<\n,'] if step > 10 else []
    readable = [token for token in allowed if 32 <= token < 127]
    if markers and chance.random() < 0.3:
        return chance.choice(markers)
    if closing and chance.random() < 0.5:
        return chance.choice(closing)
    return chance.choice(readable or allowed)


class _Bytes:
    """A tokenizer with a token for each byte, as llguidance wants to be told of one. special: how many tokens from
    the end of an answer on are no text."""

    def __init__(self, pieces: list[bytes], special: int) -> None:
        self.tokens = pieces
        self.special_token_ids = list(range(END_OF_ANSWER, END_OF_ANSWER + special))
        self.eos_token_id = END_OF_ANSWER
        self.bos_token_id = None

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def check_grammar(dialect: Dialect, *, opens: str = "", rounds: int = 6) -> None:
    """What the grammar allows, the reader reads: valid calls, nothing else where they are required, and content that
    fits. opens: a prompt's end that has opened a block of reasoning."""
    for known in ({}, vocabulary(dialect)):
        for prompt in filter(None, ("...", opens)):
            for parallel in (True, False):
                required = Tools(TOOLS.parameters, required=True, parallel=parallel)
                for found in _walked(dialect, required, None, known, prompt, rounds):
                    assert _calls_of(found, parallel=parallel)
                    assert not [piece for piece in found if isinstance(piece, Content)], found
                free = Tools(TOOLS.parameters, parallel=parallel)
                for found in _walked(dialect, free, None, known, prompt, rounds):
                    _calls_of(found, parallel=parallel)
                for found in _walked(dialect, free, '%json {"type": "integer"}', known, prompt, rounds):
                    content = [piece for piece in found if isinstance(piece, Content)]
                    assert bool(content) is not bool(_calls_of(found, parallel=parallel))
                    assert all(isinstance(json.loads(piece.text), int) for piece in content)
            for found in _walked(dialect, None, '%json {"type": "integer"}', known, prompt, rounds):
                (only,) = [piece for piece in found if not isinstance(piece, Reasoning)]
                assert isinstance(only, Content)
                assert isinstance(json.loads(only.text), int)


def _walked(
    dialect: Dialect, tools: Tools | None, content: str | None, known: Vocabulary, prompt: str, rounds: int
) -> list[list[Content | Reasoning | Call]]:
    grammar = dialect.grammar(tools, content, known, prompt)
    texts = [text for seed in range(rounds) if (text := walk(grammar, known, seed)) is not None]
    assert len(texts) > rounds // 3
    return [read(dialect, text, tools=tools, prompt=prompt, known=known) for text in texts]


def _calls_of(found: list[Content | Reasoning | Call], *, parallel: bool) -> list[Call]:
    made = [piece for piece in found if isinstance(piece, Call)]
    assert parallel or len(made) <= 1
    for call in made:
        jsonschema.validate(json.loads(call.arguments), TOOLS.parameters[call.name])
    return made
