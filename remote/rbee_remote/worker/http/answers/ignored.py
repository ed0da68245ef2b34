"""What of requests is ignored: told in the log, so that who wonders why it does nothing can find it there.

Rules
- Each is told once in a worker's life, whatever clients send; made-up names fill neither the log nor the memory.
- A request is served all the same: clients send what other servers know.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rbee_remote.system.sanitize import sanitize

#: Things that are told of, characters of a field's name, and of another thing.
MOST, LONGEST, LONGEST_LINE = 100, 60, 160

_log = logging.getLogger("rbee.worker")


class Ignored:
    """Of one endpoint. known: the fields that it reads; those whose value is null are left out, as it were."""

    def __init__(self, endpoint: str, known: Collection[str]) -> None:
        self._endpoint = endpoint
        self._known = frozenset(known)
        self._told: set[str] = set()

    def note(self, body: Any) -> None:
        """The fields of a body that nobody reads."""
        if not isinstance(body, Mapping):
            return
        for name, value in body.items():
            if name not in self._known and value is not None:
                self._tell(f"the field {name[:LONGEST]} is ignored")

    def left_out(self, lines: Iterable[str]) -> None:
        """What is no field: items and tools that a job does without, a line each."""
        for line in lines:
            self._tell(line[:LONGEST_LINE])

    def _tell(self, line: str) -> None:
        if line in self._told or len(self._told) >= MOST:
            return
        self._told.add(line)
        _log.info("%s: %s", self._endpoint, sanitize(line))
        if len(self._told) == MOST:
            _log.info("%s: further things are ignored without a word", self._endpoint)
