"""llguidance, asked whether a grammar can be used.

Rules
- Imported where it is used: neither `rbee --help` nor a plain request is to pay for it.
- Nothing that a grammar holds may cost more than `LIMITS` allow: whoever sends a hostile one gets an error.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from typing import TYPE_CHECKING, Any

from rbee_remote.protocol import ErrorCode, RemoteError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: Of `LLParserLimits`. Fuel is spent at some 50,000 a millisecond when a grammar is read and 14,000 a millisecond at a
#: token; items at 20,000 a millisecond, and an object has four of them for each property that may come next; a state of
#: the lexer takes up to 2 kB. The others are the library's own.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 20_000_000,
    "step_lexer_fuel": 1_000_000,
    "max_lexer_states": 50_000,
    "max_items_in_row": 20_000,
    "step_max_items": 200_000,
}

_END = 256


class GrammarError(ValueError):
    """Why a grammar cannot be used."""


def is_available() -> bool:
    return importlib.util.find_spec("llguidance") is not None


def require() -> None:
    """Raises RemoteError NODE_UNSUPPORTED where llguidance is missing."""
    if not is_available():
        raise RemoteError(
            ErrorCode.NODE_UNSUPPORTED,
            "this node has no llguidance, so the form of an answer cannot be constrained",
            hint="use a node with glibc 2.31 or newer, or macOS, or ask without a schema, grammar or forced tool",
        )


def make_matcher(tokenizer: LLTokenizer, lark: str) -> LLMatcher:
    """For a whole grammar. Raises GrammarError; for one that no text fits, too."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(verbose_errors=False, **LIMITS)
    matcher = LLMatcher(tokenizer, lark, log_level=0, limits=limits)
    beginning = matcher.deep_copy()
    if not matcher.is_error():
        beginning.compute_bitmask()
    if beginning.is_error():
        message = beginning.get_error()
        raise GrammarError("no text fits" if "NoExtension" in message else reason(message))
    return matcher


def check(lark: str) -> None:
    """Raises GrammarError where no answer of any model fits a whole grammar, or the library does not take it."""
    make_matcher(bytes_tokenizer(), lark)


def pattern_trouble(pattern: str) -> str:
    """Why a JSON schema's pattern cannot be used; "" where it can, or the library is missing."""
    return _pattern_trouble(pattern) if is_available() else ""


@functools.lru_cache(maxsize=256)
def _pattern_trouble(pattern: str) -> str:
    try:
        check(f"start: %json {json.dumps({'type': 'string', 'pattern': pattern})}")
    except GrammarError as error:
        return str(error).rpartition("compile JSON schema: ")[2]
    return ""


def may_overlap(patterns: tuple[str, ...]) -> bool:
    """Whether llguidance refuses the last pattern for names beside the others, because one name may match two."""
    return len(patterns) > 1 and is_available() and _may_overlap(patterns)


@functools.lru_cache(maxsize=256)
def _may_overlap(patterns: tuple[str, ...]) -> bool:
    schema = {"type": "object", "patternProperties": dict.fromkeys(patterns, True)}
    try:
        check(f"start: %json {json.dumps(schema)}")
    except GrammarError as error:
        return "not disjoint" in str(error)
    return False


@functools.cache
def bytes_tokenizer() -> LLTokenizer:
    """A token for each byte, and one that ends an answer."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Bytes()), n_vocab=_END + 1, slices=[])


class _Bytes:
    """What the library wants of a tokenizer."""

    eos_token_id = _END
    bos_token_id = None
    special_token_ids = (_END,)
    tokens: tuple[Any, ...] = (*(bytes([value]) for value in range(_END)), b"\xff<end>")

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def reason(message: str) -> str:
    """The library's words on one line, without the place in a text that its user has never seen."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if " | " not in line and set(line) - {"^", "<", ">"} and line != "<non-verbose/>"]
    return " ".join(kept)[:400] or "the library gave no reason"
