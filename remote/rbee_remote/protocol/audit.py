"""The record of who did what, as keeper and hive keep it: JSON lines, each with the SHA-256 of the line before.

A line that is changed, removed, put in between or moved breaks the chain where it stood. Lines cut off at the end
break nothing, so beside the file lies its head: how many lines there are, and the digest of the last. Whoever appends
chains to the head, not to what the file ends with: lines that were cut off stay missed for ever.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

#: What the first line has in place of a digest.
GENESIS = "0" * 64

#: Names below `log/`, of keeper and node.
AUDIT_LOG = "audit.log"
AUDIT_HEAD = "audit.head"

#: Bytes of the file with the head: always as long, so that it is overwritten in place and needs no room on a full disk.
HEAD_SIZE = 128

#: Breaks that a `Verifier` keeps; of a file in which nothing fits, the first ones say enough.
MAX_BREAKS = 100


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


def pack_head(head: AuditHead) -> bytes:
    """The content of `audit.head`: HEAD_SIZE bytes, a JSON object and blanks."""
    return json.dumps(dataclasses.asdict(head)).encode().ljust(HEAD_SIZE - 1) + b"\n"


def unpack_head(content: bytes) -> AuditHead | None:
    """None for what is no head."""
    try:
        values = json.loads(content)
        lines, digest = values["lines"], values["digest"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(lines) is not int or type(digest) is not str or lines < 0 or len(digest) != len(GENESIS):
        return None
    return AuditHead(lines, digest)


class Verifier:
    """Looks for breaks line by line, so that a log of any length needs no memory.

    start: the digest of what was before the first line. seen: the head as it was before the lines were read, where
    the log may grow meanwhile: then lines after it may be more than the last head knows of.
    breaks: found so far, MAX_BREAKS at most.
    """

    def __init__(self, start: str = GENESIS, seen: AuditHead | None = None) -> None:
        self.breaks: list[AuditBreak] = []
        self._seen = seen
        self._at_seen = start if seen and seen.lines == 0 else ""
        self._count, self._previous = 0, start

    @property
    def digest(self) -> str:
        """Of the last line that was taken."""
        return self._previous

    def take(self, line: bytes) -> None:
        """The next line, without its newline."""
        self._count += 1
        if reason := _what_is_wrong(line, self._previous):
            self._report(self._count, reason)
        self._previous = digest_of(line)
        if self._seen and self._count == self._seen.lines:
            self._at_seen = self._previous

    def end(self, head: AuditHead | None) -> list[AuditBreak]:
        """All breaks, after the last line. head: None where the file with it is missing, or holds none."""
        count, digest = self._count, self._previous
        if self._seen and head and head.lines > self._seen.lines:  # it was written to while it was read
            head, count, digest = self._seen, min(count, self._seen.lines), self._at_seen
        if head is None:
            if count:
                self._report(count, "the file with the digest of the last line is missing, or holds none")
        elif count < head.lines:
            self._report(count + 1, f"lines are missing at the end: {head.lines - count}")
        elif (count, digest) != (head.lines, head.digest) and not self.breaks:
            self._report(count, "the last line is not the one that was recorded as the last")
        return self.breaks

    def _report(self, line: int, reason: str) -> None:
        if len(self.breaks) < MAX_BREAKS:
            self.breaks.append(AuditBreak(line, reason))


def verify(lines: Iterable[bytes], head: AuditHead | None, start: str = GENESIS) -> list[AuditBreak]:
    """Where the chain is broken; lines come without their newline. head: None where the file beside is missing."""
    verifier = Verifier(start)
    for line in lines:
        verifier.take(line)
    return verifier.end(head)


def _what_is_wrong(line: bytes, previous: str) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return "it is not JSON"
    if not isinstance(entry, dict) or "previous" not in entry:
        return "it does not say which line was before it"
    return "" if entry["previous"] == previous else "the line before it was changed, removed or moved"
