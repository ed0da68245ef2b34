"""Reasoning in a block of its own, as `<think>`…`</think>`, at the start of an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.reading import Reading, Script

#: What stands between turns in templates' prompts. A marker of reasoning before it is somebody's text.
_TURN = r"<\||\|>|<\uff5c|\uff5c>|\[/?INST\]|</?s>|<(?:start|end)_of_turn>"


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

    def read(self, reading: Reading, prompt: str, *calls: str) -> Script[str]:
        """The block, if there is one. calls: markers of calls which end it as well; the one that did is returned."""
        begin, end = (reading.form(marker) for marker in self.markers)
        reading.in_reasoning = self.is_open(prompt)
        if self.is_closed(prompt):
            return ""
        if not (yield from reading.follows(begin)) and not reading.in_reasoning:
            return ""
        reading.in_reasoning = True
        stop = yield from reading.until(reading.reasoning.say, end, *map(reading.form, calls))
        reading.in_reasoning = False
        reading.content.pause()
        return "" if stop == end else stop

    def rule(self, lark: Lark, prompt: str) -> str:
        """What an answer begins with, as a part of a Lark rule that ends in a space, or nothing."""
        if self.is_closed(prompt):
            return ""
        if self.is_open(prompt):
            return f"{lark.until(self.end)} {lark.space} "
        return f"({lark.block(self.begin, self.end)} {lark.space})? "
