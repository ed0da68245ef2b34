"""A request's prompt as a chain of digests, so that a gateway can tell which worker holds most of it. Pure.

Gateway and worker compute it alike from the JSON body that both have, before any template: neither needs the other's
tokens. Two requests whose bodies begin alike have as many leading digests in common.

Rules
- Whatever JSON a body is, it has digests; what cannot be told apart ends the chain. Nothing is raised.
- Bodies that mean the same prompt have the same digests, where that can be seen without the model's template: text as a
  string or in parts, keys in any order, fields that are empty or left out, marks for another server's cache, a billing
  header before the system prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rbee_remote.protocol.billing_header import system_without_header
from rbee_remote.protocol.load_options import LORA

#: Bytes of text that one digest stands for. A shared system prompt of fifty words is worth one.
BLOCK = 256
#: Bytes of text beyond which nothing is told apart any more: some 500,000 tokens.
MOST_TEXT = 2 * 2**20
#: As deep as a schema inside a tool may be nested: `codec.MAX_DEPTH`.
MOST_DEPTH = 64
#: In a chain of what a memory holds: no prompt that ends here can build on it. No prompt has it.
GAP = ""

#: Fields that become prompt, in the order in which templates have them. Those of reasoning are written at a prompt's
#: start by some templates.
_WHOLE = (
    "chat_template",
    "chat_template_kwargs",
    "chat",
    "reasoning",
    "reasoning_effort",
    "enable_thinking",
    "thinking",
    "tools",
    "system",
    "instructions",
)
_LISTS = ("messages", "input", "prompt", "tokens")
#: What `chat`, `tools` and `thinking`, where they are objects, say of the answer and not of the prompt's start.
_OF_ANSWERS = frozenset(
    {"choice", "only", "parallel", "think_budget", "budget_tokens", "add_generation_prompt", "continue_final"}
)
#: Anthropic's clients move these from turn to turn.
_MARKS = frozenset({"cache_control"})
#: Of an item of a response that is sent back: what no prompt has. Some clients make the ids themselves, or leave them
#: out of what they send.
_OF_ITEMS = frozenset({"id", "status"})
#: What a text part is called: by OpenAI's chat completions and Anthropic, and by OpenAI's responses.
_TEXTS = frozenset({"text", "input_text", "output_text"})


class _TooDeep(Exception):
    """A value that is nested deeper than anything that is served."""


def prompt_digests(body: Any) -> tuple[str, ...]:
    """One digest of 16 hex digits for each whole BLOCK of the body's prompt; each covers all that comes before it.

    What the request says of sampling and of its answer's form makes no difference.
    """
    digests: list[str] = []
    before, rest, left = b"", b"", MOST_TEXT // BLOCK
    for piece in _pieces(body):
        text = rest + piece
        whole = min(len(text) // BLOCK, left)
        for start in range(0, whole * BLOCK, BLOCK):
            before = hashlib.blake2b(before + text[start : start + BLOCK], digest_size=8).digest()
            digests.append(before.hex())
        left -= whole
        if not left:
            break
        rest = text[whole * BLOCK :]
    return tuple(digests)


def common_digests(first: Sequence[str], second: Sequence[str]) -> int:
    """How many leading digests two prompts share, or a prompt and what a memory holds: up to the last that both have at
    the same place, because each covers all before it. 0 where a memory's GAP stands there."""
    places = range(min(len(first), len(second)) - 1, -1, -1)
    return next((place + 1 for place in places if first[place] == second[place] != GAP), 0)


def _pieces(body: Any) -> Iterator[bytes]:
    """The body's prompt, in order, each piece ended so that no two can be taken for one."""
    if not isinstance(body, Mapping):
        return
    try:
        if (scales := body.get(LORA)) is not None:  # an empty list says that none is applied
            yield _bytes({LORA: _plain(scales, 0)})
        for name in _WHOLE:
            value = body.get(name)
            if name == "system":
                value = system_without_header(value)
            if isinstance(value, Mapping):
                value = {key: item for key, item in value.items() if key not in _OF_ANSWERS}
            if not _is_empty(plain := _plain(value, 0)):
                yield _bytes({name: plain})
        for name in _LISTS:
            value = body.get(name)
            yield from _items([*map(_sent_back, value)] if name == "input" and isinstance(value, list) else value)
    except (_TooDeep, RecursionError):
        return


def _items(value: Any) -> Iterator[bytes]:
    """A list's values, one after the other; what is no list is the only value of one. Tokens are a single piece."""
    if not isinstance(value, (list, tuple)):
        value = [value]
    if value and all(type(item) is int for item in value):
        yield ",".join(map(str, value[: MOST_TEXT // 2])).encode() + b"\n"  # two bytes each at least
        return
    for item in value:
        if not _is_empty(plain := _plain(item, 0)):
            yield _bytes(plain)


def _sent_back(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return item
    return {name: value for name, value in item.items() if name not in _OF_ITEMS}


def _bytes(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _plain(value: Any, depth: int) -> Any:
    """The same for values that mean the same: nothing empty in an object, texts as strings, data by its digest."""
    if depth > MOST_DEPTH:
        raise _TooDeep
    if isinstance(value, str):
        return _shortened(value)
    if isinstance(value, Mapping):
        each = ((name, _plain(item, depth + 1)) for name, item in value.items() if name not in _MARKS)
        return {name: item for name, item in each if not _is_empty(item)}
    if isinstance(value, (list, tuple)):
        if value and all(map(_is_text, value)):
            return "".join(part["text"] for part in value)
        return [_plain(item, depth + 1) for item in value]
    return value


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in _TEXTS and isinstance(part.get("text"), str)


def _shortened(text: str) -> str:
    """An image or a sound in a data: URL is as much prompt as its digest: it would be all that is told apart."""
    if len(text) <= BLOCK or not text.startswith("data:"):
        return text
    return "data:" + hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
