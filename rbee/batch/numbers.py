"""Which lines are done: a bit for each, since an input may have millions. Pure."""

from __future__ import annotations


class Numbers:
    """A set of line numbers, a bit for each."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self.count = 0

    def add(self, number: int) -> None:
        at, bit = divmod(number, 8)
        if at >= len(self._bits):
            self._bits.extend(bytes(max(at + 1 - len(self._bits), 1024)))
        if not self._bits[at] & 1 << bit:
            self._bits[at] |= 1 << bit
            self.count += 1

    def __contains__(self, number: int) -> bool:
        at, bit = divmod(number, 8)
        return at < len(self._bits) and bool(self._bits[at] & 1 << bit)
