'''Messages of several lines, typed line by line: between `"""` and `"""`. Pure.'''

from __future__ import annotations

MARK = '"""'


def is_open(text: str) -> bool:
    """Whether a message has begun with the mark and is not closed by one."""
    begun = text.lstrip()
    return begun.startswith(MARK) and (len(begun) < 2 * len(MARK) or not begun.rstrip().endswith(MARK))


def inside(text: str) -> str:
    """The message without its marks; as it is where it has none."""
    stripped = text.strip()
    if not stripped.startswith(MARK) or is_open(text):
        return text
    return stripped[len(MARK) : -len(MARK)].strip("\r\n")
