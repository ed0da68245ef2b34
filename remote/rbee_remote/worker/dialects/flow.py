"""Text on its way out of a reading, and the white space around it."""

from __future__ import annotations

from rbee_remote.worker.dialects.interface import Content, Piece, Reasoning

SPACE = " \t\r\n"


class Flow:
    """Text of one kind, and what becomes of the space at its edges.

    holds: space waits until text follows, so that it can be dropped where something else follows. fresh: space before
    the first text is dropped.
    """

    def __init__(self, out: list[Piece], kind: type[Content] | type[Reasoning], *, holds: bool, fresh: bool) -> None:
        self._out = out
        self._kind = kind
        self._holds = holds
        self._fresh = fresh
        self._said = False
        self._paused = False
        self._space = ""

    def say(self, text: str) -> None:
        if self._fresh and not self._said:
            text = text.lstrip(SPACE)
        body = text.rstrip(SPACE) if self._holds or self._paused else text
        if body:
            self._out.append(self._kind(self._space + body))
            self._said, self._paused, self._space = True, False, ""
        self._space += text[len(body) :]

    def start_afresh(self) -> None:
        """Something else came before: space up to the first text is dropped."""
        self._fresh = True

    def pause(self, between: str = "") -> None:
        """Something else comes in between: space up to the next text, and `between`, count only between two texts."""
        self._fresh = self._paused = True
        self._space = self._space + between if self._said else ""

    def end(self) -> None:
        """The space that is left, unless it is around something else."""
        if self._space and not self._paused:
            self._out.append(self._kind(self._space))
        self._space = ""
