"""Reasoning in a block of its own, as `<think>`…`</think>`, at the start of an answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.reading import Reading, Script

#: What stands between turns in templates' prompts. A marker of reasoning before it is somebody's text.
_TURN = r"<\||\|>|<\uff5c|\uff5c>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>"


class Call(NamedTuple):
    marker: str
    #: What follows the marker.
    read: Callable[[Reading], Script[None]]


@dataclass(frozen=True, slots=True)
class Think:
    """begin, end: the markers. The model may begin with the block, or the template has opened or closed it already."""

    begin: str = "<think>"
    end: str = "</think>"

    @property
    def markers(self) -> tuple[str, str]:
        return self.begin, self.end

    def is_in(self, template: str) -> bool:
        return self.begin in template or self.end in template

    def is_open(self, prompt: str) -> bool:
        """Whether the prompt ends within a block."""
        turn = self._turn(prompt)
        return turn.rfind(self.begin) > turn.rfind(self.end)

    def is_closed(self, prompt: str) -> bool:
        """Whether the prompt has a block behind it, so that no other follows."""
        turn = self._turn(prompt)
        return turn.rfind(self.end) > turn.rfind(self.begin)

    def _turn(self, prompt: str) -> str:
        """The end of the prompt that belongs to the answer."""
        markers = f"{re.escape(self.begin)}|{re.escape(self.end)}"
        turns = [found.end() for found in re.finditer(f"({markers})|{_TURN}", prompt) if not found[1]]
        return prompt[turns[-1] :] if turns else prompt

    def read(self, reading: Reading, prompt: str, call: Call | None = None) -> Script[None]:
        """The block, if there is one. call: one that ends the block as well, and its marker."""
        reading.in_reasoning = self.is_open(prompt)
        if self.is_closed(prompt):
            reading.content.start_afresh()
            return
        if not (yield from reading.follows(reading.form(self.begin))) and not reading.in_reasoning:
            return
        reading.in_reasoning = True
        end = reading.form(self.end)
        stops = [end, reading.form(call.marker)] if call and reading.tools else [end]
        while (stop := (yield from reading.until(reading.reasoning.say, *stops))) != end:
            assert call
            if (yield from reading.attempt(call.read(reading), stop, reading.reasoning)):
                break
        reading.in_reasoning = False
        reading.content.start_afresh()

    def rule(self, lark: Lark, prompt: str, without: str = "") -> str:
        """What an answer begins with, as a part of a Lark rule that ends in a space, or nothing. without: a marker that
        the block does not hold."""
        if self.is_closed(prompt):
            return ""
        if self.is_open(prompt):
            return f"{lark.until(self.end, without)} {lark.space} "
        return f"({lark.block(self.begin, self.end, without)} {lark.space})? "
