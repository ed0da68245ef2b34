'''Messages of several lines, typed line by line: between `"""` and `"""`. Pure.'''

from __future__ import annotations

MARK = '"""'


def is_open(text: str) -> bool:
    """Whether a message has begun with the mark and is not closed by one."""
    begun = text.lstrip()
    if not begun.startswith(MARK) or (len(begun) >= 2 * len(MARK) and begun.rstrip().endswith(MARK)):
        return False
    return MARK not in begun[len(MARK) :].partition("\n")[0]  # else it only begins with something quoted


def inside(text: str) -> str:
    """The message without its marks; as it is where it has none."""
    stripped = text.strip()
    if not stripped.startswith(MARK) or len(stripped) < 2 * len(MARK) or not stripped.endswith(MARK):
        return text
    return stripped[len(MARK) : -len(MARK)].strip("\r\n")
