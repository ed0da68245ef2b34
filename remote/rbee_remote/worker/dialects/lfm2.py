"""LFM 2 and 2.5: calls as Python writes them, between markers.

<think>…</think> text <|tool_call_start|>[NAME(key="value"), NAME()]<|tool_call_end|>
"""

from __future__ import annotations

from rbee_remote.worker.dialects.calls import read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.pythonic import list_rule, read_list
from rbee_remote.worker.dialects.reading import Reading, Script


class Lfm2(Family):
    name = "lfm2"
    call_markers = ("<|tool_call_start|>", "<|tool_call_end|>")

    def writes_calls(self, template: str) -> bool:
        return self.call_markers[0] in template or "<|tool_list_start|>" in template or "List of tools: [" in template

    def call(self, reading: Reading) -> Script[None]:
        """These models write JSON when the system turn asks for it."""
        yield from reading.skip()
        as_json = (yield from reading.ahead("[{")) or (yield from reading.ahead("{"))
        yield from read_calls(reading) if as_json else read_list(reading)
        yield from reading.follows(reading.form(self.call_markers[1]))

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        return f"{first} {list_rule(lark, tools)} {lark.mark(self.call_markers[1])}"
