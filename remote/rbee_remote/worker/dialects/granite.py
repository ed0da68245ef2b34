"""Granite 3: a marker and a list of calls; reasoning, when switched on, and the answer in tags of their own.

    <think>…</think><response>text</response>
    <|tool_call|>[{"name": "NAME", "arguments": {…}}, …]

Granite 4 writes as Hermes does.
"""

from __future__ import annotations

from rbee_remote.worker.dialects.calls import call_rule, read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Reading, Script

_CALLS, _RESPONSE, _RESPONSE_END = "<|tool_call|>", "<response>", "</response>"


class Granite(Family):
    name = "granite"
    call_markers = (_CALLS,)
    bare = "{["

    def writes_calls(self, template: str) -> bool:
        return _CALLS in template

    def answer(self, reading: Reading) -> Script[None]:
        answering = yield from reading.follows(_RESPONSE)
        begin = reading.form(_CALLS) if reading.tools else ""
        if begin:
            yield from reading.attempt(self.bare_call(reading))
        while True:
            stops = (begin, _RESPONSE_END if answering else "")
            stop = yield from reading.until(reading.content.say, *filter(None, stops))
            if stop == begin:
                yield from reading.attempt(self.call(reading), begin)
            else:
                answering = False
                reading.content.pause()

    def call(self, reading: Reading) -> Script[None]:
        yield from read_calls(reading)

    def text_rule(self, lark: Lark, tools: Tools | None, content: str | None) -> str:
        text = Family.text_rule(self, lark, tools, content)
        return lark.any_of([text, f'"{_RESPONSE}" {text} "{_RESPONSE_END}"']) if content else text

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        call = lark.rule(call_rule(lark, tools), "call")
        return f'{first} "[" {call}{lark.again(quoted(", ") + " " + call, tools)} "]"'
