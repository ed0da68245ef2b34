"""The record of who did what, as keeper and hive keep it: JSON lines, each with the SHA-256 of the line before.

A line that is changed, removed, put in between or moved breaks the chain where it stood. Lines cut off at the end
break nothing, so beside the file lies its head: how many lines there are, and the digest of the last.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

#: What the first line has in place of a digest.
GENESIS = "0" * 64


@dataclasses.dataclass(frozen=True, slots=True)
class AuditHead:
    """lines: in the file. digest: of the last one, GENESIS for none."""

    lines: int = 0
    digest: str = GENESIS


@dataclasses.dataclass(frozen=True, slots=True)
class AuditBreak:
    """line: counted from 1; where lines are missing at the end, the first that is missing. reason: a clause."""

    line: int
    reason: str


def digest_of(line: bytes) -> str:
    """SHA-256 of a line without its newline, lower-case hex."""
    return hashlib.sha256(line).hexdigest()


def make_line(entry: dict[str, Any], previous: str) -> bytes:
    """`entry` chained to the line whose digest is `previous`; without newline, and never with one inside."""
    return json.dumps({**entry, "previous": previous}, ensure_ascii=False).encode("utf-8", errors="replace")


def verify(lines: Iterable[bytes], head: AuditHead | None) -> list[AuditBreak]:
    """Where the chain is broken; lines come without their newline. head: None where the file beside is missing."""
    breaks, previous, count = [], GENESIS, 0
    for count, line in enumerate(lines, 1):
        reason = _what_is_wrong(line, previous)
        if reason:
            breaks.append(AuditBreak(count, reason))
        previous = digest_of(line)
    if head is None and count:
        breaks.append(AuditBreak(count, "the file with the digest of the last line is missing"))
    elif head is not None and count < head.lines:
        breaks.append(AuditBreak(count + 1, f"{head.lines - count} lines are missing at the end"))
    elif head is not None and (count, previous) != (head.lines, head.digest) and not breaks:
        breaks.append(AuditBreak(count, "the last line is not the one that was recorded as the last"))
    return breaks


def _what_is_wrong(line: bytes, previous: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "it is no JSON"
    if not isinstance(entry, dict) or "previous" not in entry:
        return "it does not say which line was before it"
    return "" if entry["previous"] == previous else "the line before it is not the one it was written after"
