"""Fields of requests that nobody reads: told in the log, so that who wonders why they do nothing can find them there.

Rules
- Each is told once in a worker's life, whatever clients send; made-up names fill neither the log nor the memory.
- A request is served all the same: clients send what other servers know.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from rbee_remote.system.sanitize import sanitize

#: Fields that are told of, and characters of a name.
MOST, LONGEST = 100, 60

_log = logging.getLogger("rbee.worker")


class IgnoredFields:
    """Of one endpoint. known: the fields that it reads; those whose value is null are left out, as it were."""

    def __init__(self, endpoint: str, known: Collection[str]) -> None:
        self._endpoint = endpoint
        self._known = frozenset(known)
        self._told: set[str] = set()

    def note(self, body: Any) -> None:
        if not isinstance(body, Mapping):
            return
        for name, value in body.items():
            if name not in self._known and value is not None:
                self.tell(name)

    def tell(self, name: str) -> None:
        """Of a field that was found otherwise, in a part of the body, say."""
        name = name[:LONGEST]
        if name in self._told or len(self._told) >= MOST:
            return
        self._told.add(name)
        _log.info("%s: the field %s is ignored", self._endpoint, sanitize(name))
        if len(self._told) == MOST:
            _log.info("%s: further fields are ignored without a word", self._endpoint)
