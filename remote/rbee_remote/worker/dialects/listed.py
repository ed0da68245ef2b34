"""A list of calls as JSON between tags, or behind one: Nemotron Nano 2, Apriel, MiniMax M1, Firefunction.

<TOOLCALL>[{"name": "NAME", "arguments": {…}}, …]</TOOLCALL>
<tool_calls>[{"name": "NAME", "arguments": {…}}, …]</tool_calls>
functools[{"name": "NAME", "arguments": {…}}, …]
"""

from __future__ import annotations

from typing import ClassVar

from rbee_remote.worker.dialects.calls import call_rule, read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.reading import Reading, Script


class Listed(Family):
    name = "listed"
    call_markers: ClassVar[tuple[str, ...]] = ("<TOOLCALL>", "</TOOLCALL>")

    def writes_calls(self, template: str) -> bool:
        return all(marker in template for marker in self.call_markers)

    def call(self, reading: Reading) -> Script[None]:
        yield from read_calls(reading)
        for end in self.call_markers[1:]:
            yield from reading.follows(reading.form(end))

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        call = lark.rule(call_rule(lark, tools), "call")
        more = lark.again(f'", " {call}', tools)
        return " ".join([first, '"["', f"{call}{more}", '"]"', *map(lark.mark, self.call_markers[1:])])


class ListedLower(Listed):
    """Apriel's and MiniMax'."""

    call_markers = ("<tool_calls>", "</tool_calls>")


class Functools(Listed):
    """Firefunction's, with nothing behind it."""

    call_markers = ("functools",)

    def writes_calls(self, template: str) -> bool:
        return "functools[" in template
