"""Hermes 2 Pro and 3, Qwen 2.5 and 3, QwQ and many others: JSON between tags.

<think>…</think> text <tool_call>
{"name": "NAME", "arguments": {…}}
</tool_call>
"""

from __future__ import annotations

from rbee_remote.worker.dialects.calls import call_rule, read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.reading import Reading, Script


class Hermes(Family):
    name = "hermes"
    call_markers = ("<tool_call>", "</tool_call>")
    bare = "{["
    ends_reasoning = True

    def writes_calls(self, template: str) -> bool:
        return "<tool_call>" in template

    def call(self, reading: Reading) -> Script[None]:
        yield from read_calls(reading)
        yield from reading.follows(reading.form("</tool_call>"))

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        begin, end = map(lark.mark, self.call_markers)
        block = lark.rule(f'"\\n" {call_rule(lark, tools)} "\\n" {end}', "block")
        return first + " " + block + lark.again(f'"\\n" {begin} {block}', tools)
