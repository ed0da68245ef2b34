"""What one side's record shows of the other's. Pure.

Who starts a worker tells the node the digest of the last line in its own record, and is told that of the node's; each
writes the other's down (`keeper_head`, `node_head`). A line with such a digest has to be in that record ever after: a
record that was deleted with its head, or written anew with a chain that fits, has it no longer.

Rules
- Only what is on record counts: a digest that was noted and is not there. What one side never heard of proves nothing.
- A keeper's note counts for the place that it was made for, until the keeper has uninstalled the node or entered it
  anew: an attempt that failed ends nothing.
- A node's note counts for the keeper that it names, at the user and machine that it names: a home can be copied.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rbee.audit import OK
from rbee.inventory import Node

#: Notes of one side that are held against the other, the latest ones.
MOST_NOTES = 1000
#: After these a node's record may be another one.
_BEGINS_ANEW = frozenset({"uninstall", "nodes.add", "nodes.remove"})
#: Characters of a place that are kept; more than `audit.LONGEST`, at which one was cut where it was written.
_LONGEST_PLACE = 1000
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Note:
    """That a record had a line with this digest. time: by the other side's clock. place: as `place_of`."""

    digest: str
    time: str
    place: str = ""


def place_of(node: Node, home: str) -> str:
    """Where a node's record lies, as the inventory has it. home: as the node says it."""
    return f"{node.user or ''}@{node.host or ''}:{node.port or ''}{home}"


def notes_on_nodes(entries: Iterable[Mapping[str, Any]]) -> dict[str, list[Note]]:
    """What a keeper's record shows of its nodes' records, by the node's name, the earliest first."""
    found: dict[str, deque[Note]] = {}
    for entry in entries:
        node, action = str(entry.get("node")), entry.get("action")
        if action in _BEGINS_ANEW and entry.get("outcome") == OK:
            found.pop(node, None)
        elif action == "worker.start" and (note := _note(entry, "node_head")):
            found.setdefault(node, deque(maxlen=MOST_NOTES)).append(note)
    return {node: list(notes) for node, notes in found.items()}


class NotesOnKeeper:
    """Collects, line by line, what a node's record shows of one keeper's. who: `user@host` of that keeper."""

    def __init__(self, keeper_id: str, who: str) -> None:
        self._keeper_id, self._who = keeper_id, who
        self.notes: deque[Note] = deque(maxlen=MOST_NOTES)

    def take(self, line: bytes) -> None:
        if b'"keeper_head"' not in line:
            return
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(entry, dict) and (entry.get("keeper"), entry.get("who")) == (self._keeper_id, self._who):
            note = _note(entry, "keeper_head")
            self.notes += [note] if note else []


def _note(entry: Mapping[str, Any], name: str) -> Note | None:
    digest = entry.get(name)
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    return Note(digest, str(entry.get("time"))[:40], str(entry.get("place", ""))[:_LONGEST_PLACE])
