"""A request's prompt as a chain of digests, so that a gateway can tell which worker holds most of it. Pure.

Gateway and worker compute it alike from the JSON body that both have, before any template: neither needs the other's
tokens. Two requests whose bodies begin alike have as many leading digests in common.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

#: Bytes of text that one digest stands for. A shared system prompt of fifty words is worth one.
BLOCK = 256
#: Bytes of text beyond which nothing is told apart any more: some 500,000 tokens.
MOST_TEXT = 2 * 2**20

#: Fields that become prompt, in the order in which templates have them.
_WHOLE = ("chat_template", "chat_template_kwargs", "tools", "system", "instructions")
_LISTS = ("messages", "input", "prompt")


def prompt_digests(body: Mapping[str, Any]) -> tuple[str, ...]:
    """One digest of 16 hex digits for each whole BLOCK of the body's prompt; each covers all that comes before it.

    What the request says of sampling and of its answer's form makes no difference.
    """
    digests: list[str] = []
    before, rest, taken = b"", bytearray(), 0
    for piece in _pieces(body):
        rest += piece
        while len(rest) >= BLOCK and taken < MOST_TEXT:
            before = hashlib.blake2b(before + bytes(rest[:BLOCK]), digest_size=8).digest()
            digests.append(before.hex())
            del rest[:BLOCK]
            taken += BLOCK
    return tuple(digests)


def common_digests(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How many leading digests two prompts share."""
    return next(
        (at for at, (one, other) in enumerate(zip(first, second, strict=False)) if one != other),
        min(len(first), len(second)),
    )


def _pieces(body: Mapping[str, Any]) -> Iterator[bytes]:
    for name in _WHOLE:
        if body.get(name):
            yield _canonical({name: body[name]})
    for name in _LISTS:
        value = body.get(name)
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if item:
                yield _canonical(item)


def _canonical(value: Any) -> bytes:
    """The same for bodies that mean the same: what is empty is left out, and the order of keys does not matter."""
    if isinstance(value, Mapping):
        value = {key: each for key, each in value.items() if each not in (None, "", [], {}, ())}
    return (
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    )
