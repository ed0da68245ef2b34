"""Qwen 3 Coder and 3.5, Nemotron 3, StepFun 3.5, Seed OSS: tags within tags.

    <think>…</think> text <tool_call>
    <function=NAME>
    <parameter=KEY>
    value
    </parameter>
    </function>
    </tool_call>

Some models leave the outer tag out, and some end their reasoning with a call in place of `</think>`.
"""

from __future__ import annotations

from typing import ClassVar

from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Reading, Script
from rbee_remote.worker.dialects.tagged import Arguments, arguments_rule

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


class QwenXml(Family):
    name = "qwen_xml"
    call_markers: ClassVar[tuple[str, ...]] = ("<tool_call>", "</tool_call>")
    ends_reasoning = True

    def writes_calls(self, template: str) -> bool:
        return _FUNCTION in template and _PARAMETER in template and self.call_markers[0] in template

    def answer(self, reading: Reading) -> Script[None]:
        if reading.tools is None:
            return
        begin = reading.form(self.call_markers[0])
        while True:
            marker = yield from reading.until(reading.content.say, begin, _FUNCTION)
            call = self.call(reading) if marker == begin else self._function(reading)
            yield from reading.attempt(call, marker)

    def call(self, reading: Reading) -> Script[None]:
        yield from reading.skip()
        yield from reading.expect(_FUNCTION)
        yield from self._function(reading)

    def _function(self, reading: Reading) -> Script[None]:
        name = yield from reading.tool()
        yield from reading.expect(">")
        reading.begin(name)
        arguments = Arguments(reading, name)
        while (yield from reading.follows(_PARAMETER)):
            key, _ = yield from reading.collect(">")
            yield from reading.next_is("\n")
            yield from arguments.read(key, f"\n{_PARAMETER_END}", _PARAMETER_END)
        arguments.end()
        yield from reading.follows(_FUNCTION_END)
        yield from reading.follows(reading.form(self.call_markers[1]))

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        begin, end = map(lark.mark, self.call_markers)

        def pair(key: str, value: str) -> str:
            return f'"{_PARAMETER}" {key} ">\\n" {value} "\\n"'

        bodies = [
            f"{quoted(name)} {quoted('>' + chr(10))} {arguments_rule(lark, schema, pair, _PARAMETER_END, chr(10))}"
            for name, schema in tools.parameters.items()
        ]
        block = lark.rule(f'"\\n{_FUNCTION}" {lark.any_of(bodies)} "{_FUNCTION_END}\\n" {end}', "block")
        return first + " " + block + lark.again(f'"\\n" {begin} {block}', tools)


class SeedXml(QwenXml):
    """Seed OSS, with an outer tag of its own."""

    call_markers = ("<seed:tool_call>", "</seed:tool_call>")
