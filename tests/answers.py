"""Answers to a constraint without a model: a token is a byte, and which of the allowed ones comes next is chance."""

from __future__ import annotations

import json
import random
from typing import Any

from rbee_remote.constraints import library
from rbee_remote.constraints.rules import Rule, json_rule

END = 256


def json_fits(schema: dict[str, Any], value: Any, *, strict: bool = True) -> bool:
    """Whether a value, or a text of JSON as bytes, is a whole answer under a schema."""
    text = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return fits(json_rule(schema, strict=strict, where="json_schema"), text)


def fits(rule: Rule, text: bytes | str) -> bool:
    data = text.encode() if isinstance(text, str) else text
    matcher = library.make_matcher(library.bytes_tokenizer(), rule.grammar)
    return matcher.try_consume_tokens(list(data)) == len(data) and matcher.is_accepting()


def chance_answer(rule: Rule, chance: random.Random, most: int = 400) -> str | None:
    """An answer of at most so many bytes; None where it would be longer. It is led to an end as models are."""
    matcher = library.make_matcher(library.bytes_tokenizer(), rule.grammar)
    data = bytearray()
    while len(data) < most:
        mask = matcher.compute_bitmask()
        assert not matcher.is_error(), (bytes(data), matcher.get_error())
        allowed = [token for token in range(END) if mask[token // 8] >> (token % 8) & 1]
        if mask[END // 8] >> (END % 8) & 1 and (not allowed or chance.random() < 0.3):
            return data.decode()
        assert allowed, bytes(data)
        closing = [token for token in allowed if token in b'"}]0123456789.' and chance.random() < 0.5]
        plain = [token for token in allowed if token not in b" \t\n\\" and token < 127]
        token = chance.choice(closing or plain or allowed)
        assert matcher.try_consume_tokens([token]) == 1
        data.append(token)
    return None
