"""Text on its way out of a reading, and the white space around it."""

from __future__ import annotations

from rbee_remote.worker.dialects.interface import Content, Piece, Reasoning

SPACE = " \t\r\n"


class Flow:
    """Text of one kind on its way out.

    Space at its start is dropped if it is `fresh`. Space at its end is held until text follows, so that it can be
    dropped where there follows none but a call or what comes after reasoning.
    """

    def __init__(self, out: list[Piece], kind: type[Content] | type[Reasoning], *, holds: bool, fresh: bool) -> None:
        self._out = out
        self._kind = kind
        self._holds = holds
        self._fresh = fresh
        self._said = False
        self._space = ""

    def say(self, text: str) -> None:
        if self._fresh and not self._said:
            text = text.lstrip(SPACE)
        body = text.rstrip(SPACE) if self._holds else text
        if body:
            self._out.append(self._kind(self._space + body))
            self._said, self._space = True, ""
        self._space += text[len(body) :]

    def pause(self, between: str = "") -> None:
        """Something else comes in between: space up to the next text, and `between`, count only between two texts."""
        self._fresh = self._holds = True
        self._space = self._space + between if self._said else ""

    def end(self) -> None:
        """The rest. Space behind a pause was around something else."""
        if self._space and not self._fresh:
            self._out.append(self._kind(self._space))
        self._space = ""
