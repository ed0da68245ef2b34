"""Kimi K2: a section of calls, each with an id that holds its name.

<think>…</think> text <|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0
<|tool_call_argument_begin|>{…}<|tool_call_end|><|tool_calls_section_end|>        (without the line's end)
"""

from __future__ import annotations

from rbee_remote.worker.dialects.family import Sectioned
from rbee_remote.worker.dialects.flow import SPACE
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import NoCall, Reading, Script


class Kimi(Sectioned):
    name = "kimi"
    call_markers = (
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
    )

    def writes_calls(self, template: str) -> bool:
        return self.call_markers[0] in template

    def one_call(self, reading: Reading) -> Script[None]:
        *_, arguments, end = map(reading.form, self.call_markers)
        call_id, _ = yield from reading.collect(arguments)
        call_id = call_id.strip(SPACE)
        name = call_id.removeprefix("functions.").rpartition(":")[0] or call_id
        if not reading.known(name):
            raise NoCall
        yield from reading.json_object(name, call_id)
        yield from reading.follows(end)

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        _, section_end, begin, arguments, end = map(lark.mark, self.call_markers)
        bodies = [
            f"{quoted(f'functions.{name}:')} /[0-9]{{1,3}}/ {arguments} {lark.arguments(schema)}"
            for name, schema in tools.parameters.items()
        ]
        call = lark.rule(f"{begin} {lark.any_of(bodies)} {end}", "call")
        return f"{first} {call}{lark.again(call, tools)} {section_end}"
