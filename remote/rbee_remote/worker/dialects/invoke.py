"""MiniMax M2, DeepSeek V3.2 and V4: tags with names as attributes.

    <think>…</think> text <minimax:tool_call>
    <invoke name="NAME">
    <parameter name="KEY">value</parameter>
    </invoke>
    </minimax:tool_call>

DeepSeek puts its own bars into each tag, calls the outer one function_calls (V4: tool_calls), and says with
string="true" or "false" in each parameter whether the value is text or JSON. The tool's schema says it as well, so this
is not looked at.
"""

from __future__ import annotations

import json
from typing import ClassVar

from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Reading, Script
from rbee_remote.worker.dialects.tagged import Arguments, arguments_rule, is_text, property_of

_BARS = "\uff5cDSML\uff5c"


class Invoke(Family):
    """MiniMax."""

    name = "invoke"
    call_markers: ClassVar[tuple[str, ...]] = ("<minimax:tool_call>", "</minimax:tool_call>")
    #: What stands in each tag before its name.
    bars: ClassVar[str] = ""
    #: Whether each parameter says if it is text.
    says_type: ClassVar[bool] = False

    def writes_calls(self, template: str) -> bool:
        return self.call_markers[0] in template and "invoke name=" in template

    def call(self, reading: Reading) -> Script[None]:
        yield from reading.skip()
        yield from reading.expect(self._tag('invoke name="'))
        yield from self._invoke(reading)
        while (yield from reading.follows(self._tag('invoke name="'))):
            if not (yield from reading.attempt(self._invoke(reading), self._tag('invoke name="'))):
                return
        yield from reading.follows(reading.form(self.call_markers[1]))

    def _invoke(self, reading: Reading) -> Script[None]:
        name = yield from reading.tool()
        yield from reading.expect('">')
        reading.begin(name)
        arguments = Arguments(reading, name)
        while (yield from reading.follows(self._tag('parameter name="'))):
            key, _ = yield from reading.collect('"')
            yield from reading.collect(">")
            yield from arguments.read(key, self._end("parameter"))
        arguments.end()
        yield from reading.follows(self._end("invoke"))

    def _tag(self, text: str) -> str:
        return f"<{self.bars}{text}"

    def _end(self, text: str) -> str:
        return f"</{self.bars}{text}>"

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        bodies = [self._body(lark, tools, name) for name in tools.parameters]
        call = lark.rule(f"{quoted(self._tag('invoke name=') + chr(34))} {lark.any_of(bodies)}", "call")
        again = lark.again(call, tools)
        return f'{first} "\\n" {call}{again} {lark.mark(self.call_markers[1])}'

    def _body(self, lark: Lark, tools: Tools, name: str) -> str:
        schema = tools.parameters[name]

        def pair(key: str, value: str) -> str:
            plain = json.loads(key)
            says = str(is_text(schema, property_of(schema, plain))).lower()
            typed = f' string="{says}"' if self.says_type else ""
            head = quoted(f'{self._tag("parameter name=")}"{plain}"{typed}>')
            return f'{head} {value} "\\n"'

        arguments = arguments_rule(lark, schema, pair, self._end("parameter"))
        end = quoted(f"{self._end('invoke')}\n")
        return f"{quoted(name + chr(34) + '>' + chr(10))} {arguments} {end}"


class InvokeBars(Invoke):
    """DeepSeek V3.2."""

    bars = _BARS
    says_type = True
    call_markers = (f"<{_BARS}function_calls>", f"</{_BARS}function_calls>")

    def writes_calls(self, template: str) -> bool:
        return _BARS in template and "function_calls" in template


class InvokeBars4(InvokeBars):
    """DeepSeek V4."""

    call_markers = (f"<{_BARS}tool_calls>", f"</{_BARS}tool_calls>")

    def writes_calls(self, template: str) -> bool:
        return _BARS in template and "tool_calls>" in template
