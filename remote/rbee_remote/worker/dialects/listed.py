"""A list of calls as JSON between tags: Nemotron Nano 2, Apriel, MiniMax M1.

<TOOLCALL>[{"name": "NAME", "arguments": {…}}, …]</TOOLCALL>
<tool_calls>[{"name": "NAME", "arguments": {…}}, …]</tool_calls>
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
        yield from reading.follows(reading.form(self.call_markers[1]))

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        call = lark.rule(call_rule(lark, tools), "call")
        more = lark.again(f'", " {call}', tools)
        return f'{first} "[" {call}{more} "]" {lark.mark(self.call_markers[1])}'


class ListedLower(Listed):
    """Apriel's and MiniMax'."""

    call_markers = ("<tool_calls>", "</tool_calls>")
