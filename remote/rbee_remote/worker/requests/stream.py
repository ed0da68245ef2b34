"""Token bytes to text: characters split over tokens, and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feed it token bytes; it gives text that is whole and surely not part of a stop string.

    Text that could still become a stop string is held back until the next token decides. A stop string itself, and
    what follows it, never comes out. Bytes that are no UTF-8 become U+FFFD. stopped_by: the one that came, "" for none.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped_by = ""

    @property
    def stopped(self) -> bool:
        return bool(self.stopped_by)

    def feed(self, piece: bytes) -> str:
        """Text that became certain with this token; empty while a character or a stop string is open."""
        return self.add(self._decoder.decode(piece))

    def finish(self) -> str:
        """What was held back, once no token follows."""
        text = self.add(self._decoder.decode(b"", final=True))
        held, self._held = self._held, ""
        return text + held

    def add(self, text: str) -> str:
        """`feed` for what are whole characters already."""
        if self.stopped:
            return ""
        self._held += text
        found = self._first_stop()
        if found is not None:
            at, self.stopped_by = found
            text, self._held = self._held[:at], ""
            return text
        certain = len(self._held) - self._open_end()
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def _first_stop(self) -> tuple[int, str] | None:
        """Where the stop string begins that is complete first, so that it matters not how tokens cut the text; and
        which it is."""
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(found)[1:] if found else None

    def _open_end(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
