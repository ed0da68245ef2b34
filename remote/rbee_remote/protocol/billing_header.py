"""A line that Claude Code puts before its system prompt, meant for its maker's servers alone. Pure.

    x-anthropic-billing-header: cc_version=2.1.177.01c; cc_entrypoint=cli; cch=36ee5;

`cch` is another in each request, so nothing of a prompt behind it could be taken from memory. Worker and gateway leave
it out alike; text that follows on the same line stays.
"""

from __future__ import annotations

import re
from typing import Any

_HEADER = re.compile(r"\s*x-anthropic-billing-header:(?:[ \t]*[\w.-]+=[^;\n]{0,200}(?:;|(?=\n|\Z)))*[ \t]*\n*")


def without_header(text: str) -> str:
    found = _HEADER.match(text)
    return text[found.end() :] if found else text


def system_without_header(system: Any) -> Any:
    """A request's `system`, a text or text blocks, without it; a block of nothing else is left out."""
    if isinstance(system, str):
        return without_header(system)
    if not isinstance(system, (list, tuple)):
        return system
    return [block for block in map(_block, system) if block is not None]


def _block(block: Any) -> Any:
    """None for a block of the header alone."""
    text = block.get("text") if isinstance(block, dict) else None
    if not isinstance(text, str):
        return block
    rest = without_header(text)
    if rest == text:
        return block
    return {**block, "text": rest} if rest else None
