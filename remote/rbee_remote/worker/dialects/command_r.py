"""Command R7B, Command A and Cohere's later models: everything between markers.

<|START_THINKING|>…<|END_THINKING|><|START_RESPONSE|>text<|END_RESPONSE|>
<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "NAME", "parameters": {…}}, …]<|END_ACTION|>
"""

from __future__ import annotations

from rbee_remote.worker.dialects.calls import Keys, read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, inside, quoted
from rbee_remote.worker.dialects.reading import Reading, Script

_ACTION, _ACTION_END = "<|START_ACTION|>", "<|END_ACTION|>"
_FRAMES = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
#: A call's object, up to its values.
_ID, _NAME, _PARAMETERS = '{"tool_call_id": "', '", "tool_name": "', '", "parameters": '
_KEYS = Keys(("tool_name",), ("parameters",), ("tool_call_id",))


class CommandR(Family):
    name = "command_r"
    call_markers = (_ACTION, _ACTION_END, *_FRAMES)

    def writes_calls(self, template: str) -> bool:
        return _ACTION in template

    def answer(self, reading: Reading) -> Script[None]:
        begin = reading.form(_ACTION) if reading.tools else ""
        stops = [*map(reading.form, _FRAMES), *filter(None, [begin])]
        while True:
            stop = yield from reading.until(reading.content.say, *stops)
            if stop == begin:
                yield from reading.attempt(self.call(reading), begin)
            else:
                reading.content.pause()

    def call(self, reading: Reading) -> Script[None]:
        yield from read_calls(reading, _KEYS)
        yield from reading.follows(reading.form(_ACTION_END))

    def text_rule(self, lark: Lark, tools: Tools | None, content: str | None) -> str:
        text = Family.text_rule(self, lark, tools, content)
        framed = [
            f"{lark.mark(begin)} {text} {lark.mark(end)}"
            for begin, end in (_FRAMES[:2], _FRAMES[2:])
            if lark.has(begin) and lark.has(end)
        ]
        return lark.any_of([text, *framed])

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        bodies = [
            f"{quoted(inside(name) + _PARAMETERS)} {lark.arguments(schema)}"
            for name, schema in tools.parameters.items()
        ]
        head = f"{quoted(_ID)} /[0-9]{{1,3}}/ {quoted(_NAME)}"
        call = lark.rule(f'{head} {lark.any_of(bodies)} "}}"', "call")
        return f'{first} "[" {call}{lark.again(quoted(", ") + " " + call, tools)} "]" {lark.mark(_ACTION_END)}'
